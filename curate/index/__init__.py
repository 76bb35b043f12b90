"""The index: one FiftyOne dataset a project, kept in line with the images on disk and the label log.

Read `sync.py` first (`curate index`, from listing files to writing samples), then `dataset.py` (what the rest of the
code asks of the dataset). May import the ground floor, `labels`, `masks` and `formats`.
"""
