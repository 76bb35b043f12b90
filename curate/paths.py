"""Paths from label files are untrusted: nothing may lead out of the data root."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from curate.errors import LabelProblem

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # a drive or a URL; `12:30:05.jpg` is a sound file name


def safe_join(root: Path, name: str) -> Path:
    """Return `root/name`. Raises LabelProblem if the name (or a symlink on its way) leads out of `root`."""
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if printable(name) != name:
        raise LabelProblem(f"path '{printable(name)}' is not valid UTF-8: rename the file")
    if not parts:
        raise LabelProblem(f"path '{name}' names no file")
    if escapes(name):
        raise LabelProblem(f"path '{name}' leaves the data root")
    path = f"{root}/{'/'.join(parts)}"
    real = os.path.realpath(path)  # Path.resolve raises on a symlink that leads to itself
    if not real.startswith(_real_root(str(root))):
        raise LabelProblem(f"path '{name}' leads out of the data root through a symlink")
    if os.path.islink(real):
        raise LabelProblem(f"path '{name}' is a symlink that leads to itself")
    return Path(path)


def escapes(name: str) -> bool:
    """Return True if the name could lead out of the folder that it is joined to; no file is read."""
    text = name.replace("\\", "/")
    return "\0" in name or text.startswith("/") or ".." in text.split("/") or bool(ELSEWHERE.match(text))


@lru_cache(maxsize=64)
def _real_root(root: str) -> str:
    return os.path.join(os.path.realpath(root), "")


def printable(name: str) -> str:
    """Return the name as text: bytes that are not UTF-8 (Python reads them as lone surrogates) are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def walk(root: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> Iterator[str]:
    """Yield the relative POSIX paths of all files with one of `suffixes` (lower case), in a stable order.

    Symlinked folders are not entered; symlinked files are listed, and `safe_join` checks them.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(root).as_posix()
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                yield name if relative == "." else f"{relative}/{name}"
