"""Processes that read and draw images beside the one that writes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor


def pool(workers: int | None = None) -> ProcessPoolExecutor:
    """A pool of fresh processes: a fork would inherit the threads and sockets of the database's client."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers or os.cpu_count() or 1, mp_context=context, initializer=_begin)


def _begin() -> None:
    """Ctrl-C is the parent's to handle; and a worker whose parent was killed ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
