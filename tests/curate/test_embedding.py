"""`curate embed`: only what is missing, whatever was killed, and the same vectors however the work is spread."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate import embed, embedding, indexing, vectors
from curate.data import Item
from curate.embedding import outcomes, pixels_of, run
from curate.errors import CurateError, LabelProblem
from curate.index import Index
from curate.project import Project
from curate.tables import Table
from curate.vectors import Vectors, open_latest
from tests import fakes
from tests.curate.test_cli import Run, failed, ok
from tests.curate.test_cli import run as run  # noqa: F811 - the command line's fixture, under its own name below

LIMIT = 10_000_000
curate = run


def todo(folder: Path, count: int = 12, size: tuple[int, int] = (96, 40)) -> list[tuple[str, str]]:
    files = [fakes.save_image(folder / f"{n:03d}.png", *size, seed=n) for n in range(count)]
    return [(hashlib.sha256(file.read_bytes()).hexdigest(), str(file)) for file in files]


def same(first: Any, second: Any) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a.id == b.id and (a.boxes == b.boxes).all() and (a.vectors == b.vectors).all() for a, b in pairs)
