"""Paths from label files are untrusted: nothing may lead out of the data root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from curate.errors import LabelProblem

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


def safe_join(root: Path, name: str) -> Path:
    """`root/name`, or a LabelProblem if the name (or a symlink on its way) leads out of `root`."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        raise LabelProblem(f"path '{name}' leaves the data root")
    path = root / parts
    if not path.resolve().is_relative_to(root.resolve()):
        raise LabelProblem(f"path '{name}' leads out of the data root through a symlink")
    return path


def walk(root: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> Iterator[str]:
    """Relative POSIX paths of all files with one of `suffixes` (lower case), in a stable order.

    Symlinked folders are not entered; symlinked files are listed, and `safe_join` judges them.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(root).as_posix()
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                yield name if relative == "." else f"{relative}/{name}"
