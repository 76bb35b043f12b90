"""Training: from a project and a recipe to a model in the store.

Read `run.py` first (`curate train`), then `loop.py`: the training loop, from top to bottom. May import `curate`,
`train.data`, `train.architectures` and the ground floor of `train`.
"""
