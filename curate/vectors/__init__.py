"""Vectors of images and of their windows: computed once, stored by content id, searched for near-duplicates.

Read `run.py` first (`curate embed`), then `store.py`. May import the ground floor, `masks`, `labels`, `index`, `embed`
and `greedy`.
"""
