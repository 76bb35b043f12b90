"""Mutated inputs against everything that reads what it did not write: start with `run.py`, which prints the tally.

A target (`kinds.Target`) draws one small, valid input, damages it (`mutate.py`) and hands it to the code that has to
read it. All of it follows from the target's name and the seed. `child.py` does that in a process of its own, where a
crash or a hang costs one input; crashers that were found are kept as plain tests in `test_crashers.py`.

    make fuzz MINUTES=30
    python -m tests.fuzz.run --only coco --seed-from 4711 --count 1 --keep
"""
