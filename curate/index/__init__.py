"""The index: one FiftyOne dataset a project, kept equal to the images on disk and to the label log.

Read `sync.py` first (`curate index`, from listing files to writing samples), then `dataset.py` (what the rest of the
code asks of the dataset). May import the ground floor, `labels`, `masks` and `formats`.
"""
