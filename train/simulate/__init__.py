"""Would a strategy have beaten random on labelled data? Labels are hidden and bought back round by round.

Read `one_run.py` first, then `run.py` (`curate simulate`). May import `curate` and the rest of `train`.
"""
