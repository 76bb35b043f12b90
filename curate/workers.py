"""Processes that read and draw images beside the one that writes."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor


@contextlib.contextmanager
def calm_collector() -> Iterator[None]:
    """Bulk work makes millions of short-lived objects and no cycles; Python's collector, left alone, walks through
    everything that FiftyOne has loaded again and again (a third of the time of an index run)."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def pool(workers: int | None = None) -> ProcessPoolExecutor:
    """A pool of fresh processes: a fork would inherit the threads and sockets of the database's client."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=context, initializer=_begin)


def _begin() -> None:
    """Ctrl-C is the parent's to handle; and a worker whose parent was killed ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()


def follow(parent: int) -> None:
    """For a thread of its own: this process ends when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
