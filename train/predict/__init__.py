"""A stored model on images: probabilities, regions and uncertainty scores.

Read `predictor.py` first, then `run.py` (`curate predict`). May import `curate`, `train.data`, `train.architectures`
and the ground floor of `train`.
"""
