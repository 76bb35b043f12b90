"""Targets that fail, each in a way of its own: what the fuzzer's own tests run."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from random import Random

from curate.errors import CurateError
from tests.fuzz.kinds import OK, Target


def _made(what: str, random: Random, root: Path) -> str:
    os.mkfifo(root / "pipe")
    return what


def _read(what: str, root: Path) -> str:
    match what:
        case "outside":
            (root.parents[1] / "secret.txt").read_text()
        case "two lines":
            raise CurateError("one line\nand another")
        case "zero":
            raise ZeroDivisionError
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "waits":
            (root / "pipe").read_bytes()
    return OK


TARGETS = {
    what: Target(what, partial(_made, what), _read)
    for what in ("fine", "outside", "two lines", "zero", "killed", "waits")
}
