"""Defects as pixels: shapes from label files, run-lengths and masks, in one canonical form.

Read `shapes.py` first; `rle.py` holds the compiled run-length kernels. May import the ground floor only.
"""
