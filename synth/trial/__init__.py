"""Does a synthesiser help? A paired experiment on grouped folds of the train split.

Read `design.py` first, then `run.py` (`curate synth trial`). May import `curate`, `train` and the rest of `synth`.
"""
