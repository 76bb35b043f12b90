"""Memory of a process that computes: what was freed is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from curate import workers

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.full(12 << 20, 1, np.float32)  # 48 MiB: above all that glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
workers.reuse_freed_memory()
faults()
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what is freed")
def test_a_large_block_that_was_freed_is_used_again():
    plain, reused = map(int, subprocess.check_output([sys.executable, "-c", SCRIPT], text=True).split())
    assert reused < 0.02 * plain, (plain, reused)
