"""Formats of other tools for what is in one image: each file writes and reads one."""
