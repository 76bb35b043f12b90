"""A model as files that run without torch: ONNX and INT8 ONNX, checked against the original.

Read `run.py` first (`curate export-model`). May import `curate`, `train.data`, `train.predict` and `train.evaluate`.
"""
