"""What came of a run: questions, galleries, comparisons, other formats, few large files."""
