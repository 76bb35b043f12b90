"""Find, label and balance the rarest surface defects."""

import os

__version__ = "0.1.0"

# OpenMP's threads would spin while they wait for each other, and on a busy machine take the core from the very thread
# that they wait for. It is read when torch is loaded, so it stands here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
