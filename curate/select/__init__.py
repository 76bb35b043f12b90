"""From index, vectors and scores to the few images worth a person's time.

Read `pool.py` first (what a strategy sees and returns), then `run.py` (`curate select`); `rules.py` holds what all
strategies share. May import the ground floor, `labels`, `index`, `vectors`, `greedy` and `strategies`.
"""
