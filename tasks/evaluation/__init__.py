"""A model judged on a dataset: counts, figures with intervals, the CRF search."""
