"""Processes that read and draw images beside the one that writes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the number of processor cores that this process may use, by its affinity and its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, _quota())))


def _quota() -> float:
    """Return the cores that the control group grants (version 2, else 1); infinite without a limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((CGROUP / name).read_text() for name in files).split()
            if float(quota) > 0:
                return float(quota) / float(period)
    return math.inf


@contextlib.contextmanager
def relaxed_collector() -> Iterator[None]:
    """Run Python's garbage collector rarely: bulk work makes millions of short-lived objects and no cycles, and the
    collector would walk through all that FiftyOne has loaded again and again (a third of the time of an index run)."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@functools.cache
def reuse_freed_memory() -> None:
    """Keep up to 1 GiB of freed memory in this process, where the C library is glibc.

    By itself glibc gives each freed block above 32 MB back to the system, and the next one (a layer's output, a block
    of distances) is zeroed page by page again: half the time of a forward pass on two cores."""
    m_trim_threshold, m_mmap_threshold, limit = -1, -3, 1 << 30  # names and numbers of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, limit)
        mallopt(m_trim_threshold, limit)


def pool(workers: int | None = None) -> ProcessPoolExecutor:
    """Return a pool of fresh processes: a fork would inherit the threads and sockets of the database's client."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers or cores(), mp_context=context, initializer=_init_worker)


def _init_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()


def exit_with_parent(parent: int) -> None:
    """End this process when its parent is gone; runs in a thread of its own."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
