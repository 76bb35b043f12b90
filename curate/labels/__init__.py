"""The durable record of labels and splits: append-only logs from which the index can be rebuilt.

Read `log.py` first; `splits.py` gives each group its split once and for all. May import the ground floor only.
"""
