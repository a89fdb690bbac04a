"""The formats of an export: one file each, all behind the interface of `formats.py`."""
