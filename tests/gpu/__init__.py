"""How fast and how good training, embedding, prediction and synthesis are on a GPU: for a bare machine, in minutes.

    python -m tests.gpu.pack                                 here: pictures, labels and wheels to out/gpu-pack
    python -m tests.gpu.run --data out/gpu-pack --out DIR    there, with the packages that pack.py names

Read `run.py` first; `cases.py` holds the measurements.
"""
