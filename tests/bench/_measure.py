"""Shared by the benchmarks: methods timed in turn, medians, and a table. Set the thread limits before numpy loads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Method = Callable[[], Any]


def interleaved(methods: dict[str, Method], repetitions: int, warm: bool = True) -> dict[str, float]:
    """Median seconds of each method, in turn, so that a busy moment of the machine hits every one alike."""
    spent: dict[str, list[float]] = {name: [] for name in methods}
    for repetition in range(repetitions + warm):
        for name, method in methods.items():
            begin = time.perf_counter()
            method()
            if repetition or not warm:
                spent[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def once(method: Method) -> tuple[float, Any]:
    """Seconds of a single call, and what it returned."""
    begin = time.perf_counter()
    result = method()
    return time.perf_counter() - begin, result


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest cell: the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip())


def peak_bytes() -> int:
    """The most memory this process has held, in bytes.

    Linux only: the kernel's figure starts afresh in a new program, while that of getrusage is inherited from the
    process that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
