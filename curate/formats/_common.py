"""Helpers of several formats: listings, label-file names, numbers from untrusted text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from curate import files
from curate.data import Record
from curate.errors import CurateError, LabelProblem
from curate.paths import IMAGE_SUFFIXES, safe_join, walk

ONE_IMAGE = 64 << 20  # bytes of a label file for one image
WHOLE_SET = 1 << 30  # bytes of a label file for a whole data set


def listing(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[str]:
    """Relative POSIX paths below `folder`, sorted as text (`walk` sorts folder by folder)."""
    return sorted(walk(folder, suffixes))


def stem(path: str) -> str:
    """The path without its suffix, folders kept: `a/b.jpg` -> `a/b`."""
    return PurePosixPath(path).with_suffix("").as_posix() if PurePosixPath(path).name else path


def join(folder: str, name: str) -> str:
    """`folder/name` as text only. An absolute or climbing name stays recognisable, so that the index refuses it."""
    return (PurePosixPath(folder) / name).as_posix()


def folder_below(root: Path, name: str, option: str) -> Path:
    """The sub-folder that an option names; `""` and `.` are the root itself."""
    folder = root if name in ("", ".") else safe_join(root, name)
    if not folder.is_dir():
        raise CurateError(f"no folder '{name}' below '{root}'. Set the option `{option}` to the folder's name")
    return folder


def label_name(root: Path, path: Path) -> str:
    """The name by which a label file is reported: relative to the data root when inside it, else absolute."""
    root, path = root.absolute(), path.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def find_label_file(root: Path, labels: Path | None, usual: str) -> Path:
    """The label file that the user named, else the usual one below the root."""
    path = labels or safe_join(root, usual)
    if path.is_file():
        return path
    raise CurateError(f"label file '{path}' not found. Set `labels` to the label file")


def find_label_folder(root: Path, labels: Path | None, usual: Iterable[str]) -> Path:
    """The label folder that the user named, else the first usual one that exists, else the root."""
    if labels is None:
        return next((root / name for name in usual if (root / name).is_dir()), root)
    if labels.is_dir():
        return labels
    raise CurateError(f"label folder '{labels}' not found. Set `labels` to the folder that holds the label files")


def without_label(path: str, fully_labelled: bool, unassigned: Collection[str] = ()) -> Record:
    """Record of an image without a label: clean in a fully labelled set, unless a label's image is unknown.

    Args:
        path: The image.
        fully_labelled: Every defect of the data set is labelled.
        unassigned: Labels that may belong to this image.
    """
    if fully_labelled and unassigned:
        return Record(path, note=f"not taken as clean: a label fits no image ({short(next(iter(unassigned)))})")
    return Record(path, labelled=fully_labelled)


def refuse_labels(name: str, labels: Path | None) -> None:
    """Refuse `labels` in a format without label files, where it would be ignored."""
    if labels is not None:
        raise CurateError(f"format {name} has no label files, but `labels` is '{labels}'. Remove `labels`")


def read_text(path: Path, limit: int = WHOLE_SET) -> str:
    """A label file as text; a byte-order mark is dropped, line ends stay as they are."""
    try:
        return files.read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise LabelProblem(f"label file '{path.name}' is not UTF-8 text (byte {problem.start})") from None
    except OSError as problem:
        raise LabelProblem(f"label file '{path.name}' cannot be read: {problem.strerror}") from None


def number(value: object, what: str) -> float:
    """A finite number from untrusted text or JSON, or a LabelProblem that names the value."""
    try:
        # Python reads "1_0" as 10 and True as 1; in a label file both are damage.
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or "_" in str(value):
            raise ValueError
        result = float(value)
    except (ValueError, OverflowError):
        raise LabelProblem(f"{what} is {short(value)}, not a number") from None
    if not math.isfinite(result):
        raise LabelProblem(f"{what} is {short(value)}, not a finite number")
    return result


def short(value: object) -> str:
    """A value for an error text: quoted, one line, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
