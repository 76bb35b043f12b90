"""What a target is, and what counts as a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

OK, REJECTED = "ok", "rejected"
CLEANED, LOST, OUTSIDE, WRONG = "became clean", "lost region", "read outside", "wrong result"
TRACEBACK, CRASH, HANG, MEMORY = "traceback", "crash", "hang", "memory"
FAILURES = (TRACEBACK, CRASH, HANG, MEMORY, CLEANED, LOST, OUTSIDE, WRONG)


class Fault(Exception):
    """An input that was read without complaint, and wrongly."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def _nothing() -> None:
    """Most targets need no more than their imports."""


@dataclass(frozen=True)
class Target:
    """One reader under attack.

    `make` draws an input: it writes files below the folder, returns a value, or both. `check` reads them: it returns OK
    or REJECTED, or raises CurateError (rejected, in one line), Fault or anything else (a failure). `prepare` does the
    slow imports and draws what all inputs start from; its time does not count. `share`: inputs to a turn, relative to
    the other targets. `database`: whether it needs a MongoDB.
    """

    name: str
    make: Callable[[Random, Path], Any]
    check: Callable[[Any, Path], str]
    prepare: Callable[[], None] = _nothing
    share: float = 1.0
    database: bool = False
