"""A model as files that run without torch, checked against the original, and a model applied to any images.

Read `run.py` first (`curate export-model`), then `runner.py` (`curate run`). May import `curate`, `train.data`,
`train.predict` and `train.evaluate`.
"""
