"""Labelled images as arrays: decoding, augmentation, and which images an epoch shows.

Read `dataset.py` first. May import `curate` and the ground floor of `train`.
"""
