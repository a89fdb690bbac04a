"""Data to learn from: classes of other tools, pairs of image and mask, SBD, near-duplicates, what a model has seen."""
