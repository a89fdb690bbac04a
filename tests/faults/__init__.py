"""Everything that goes wrong, done on purpose to a real job: `make faults`, or `python -m tests.faults [NAME ...]`.

One file per fault; `registry.py` knows them all, `bench.py` is what they share, `__main__.py` prints the table. A new
fault is a file with a `Fault` in it and a line in the registry.
"""
