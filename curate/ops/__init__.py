"""Operations that a person asks for, one file each: take the writer lock, call the rooms, update the App's saved views.

Command line and `curate loop` call the same functions. Read any file; `_lock.py` is what they share. May import all of
`curate` but the command line, and `train` and `labeling` inside functions. Operations that lock a folder of their own
for hours (train, tune, simulate, synth) or are one call of a room (classes, resolve, backup) have no file here.
"""
