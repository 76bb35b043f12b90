"""Unbiased estimates from randomly drawn picks, and whether another labelling round is worth it.

Read `estimates.py` first (the statistics), then `run.py` (`curate audit`). May import the ground floor, `labels`,
`index`, `vectors` and `select`.
"""
