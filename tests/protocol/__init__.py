"""The commit protocol, proved: `make prove`, or `python -m tests.protocol`.

`model.py` explores a small model of it in full. `turns.py` lets the real code of several jobs take turns, one call of a
store at a time, on the stores of `store.py`; `history.py` is one such history with its invariants, made from a seed.
`bugs.py` plants faults in the protocol that the histories must find, `__main__.py` counts.
"""
