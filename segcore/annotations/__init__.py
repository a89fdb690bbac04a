"""Annotation formats of other tools, one image at a time: each file writes and reads one format."""
