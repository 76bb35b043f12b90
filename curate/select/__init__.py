"""Selection of the few images that are worth labelling, from index, vectors and scores.

Read `pool.py` first (input and output of a strategy), then `run.py` (`curate select`); `rules.py` is the layer that all
strategies run in. May import the ground floor, `labels`, `index`, `vectors`, `greedy` and `strategies`.
"""
