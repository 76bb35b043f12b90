"""How good a model is on images that it was not trained on: metrics with intervals, comparison, mistakes.

Read `run.py` first (`curate evaluate`), then `metrics.py`. May import `curate` and all of `train` but `export` and
`simulate`.
"""
