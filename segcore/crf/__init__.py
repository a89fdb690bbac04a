"""The fully connected CRF: parameters and Python in `dense_crf.py`, the C++ in `engine/`."""
