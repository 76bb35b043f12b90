"""A stored model on images: probabilities, regions and uncertainty scores.

Read `run.py` first (`curate predict`). May import `curate`, `train.data` and the ground floor of `train`.
"""
