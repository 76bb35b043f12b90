"""Pascal VOC XML, shared by `voc`, `neu_det` and `gc10`: assigning files to images, and reading them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from curate.data import Box, Record, Region, Reject
from curate.errors import LabelProblem
from curate.files import read_bytes
from curate.formats._common import (
    ONE_IMAGE,
    find_label_folder,
    label_name,
    listing,
    number,
    short,
    stem,
    without_label,
)
from curate.paths import safe_join

USUAL = ("Annotations", "ANNOTATIONS", "annotations", "labels")
XML = frozenset({".xml"})
FIELDS = frozenset({"folder", "filename", "path", "source", "size", "segmented"})  # a clean file has one of them
# Folders of the original layout with masks that have the names of their images.
MASKS = frozenset({"SegmentationClass", "SegmentationObject"})


def records(
    root: Path,
    labels: Path | None,
    fully_labelled: bool,
    *,
    one_based: bool,
    usual: Iterable[str] = USUAL,
    copies: bool = False,
) -> Iterator[Record | Reject]:
    """One entry an image. With `copies` images of equal file names are the same one, so that each gets the label."""
    folder = find_label_folder(root, labels, usual)
    images = [path for path in listing(root) if MASKS.isdisjoint(PurePosixPath(path).parts)]
    files = _files_by_image(root, folder, images, copies)
    claims = Counter(source for sources in files.values() for source in sources)
    lost = _unassigned(folder, files.keys() - set(images), files)
    for path in sorted({*images, *files}):
        sources = files.get(path, [])
        if not sources:
            yield without_label(path, fully_labelled, lost)
        elif len(sources) > 1:
            reason = f"{len(sources)} label files fit this image: {', '.join(sources[:3])}"
            yield Reject(path, reason, label_name(root, folder / sources[0]))
        elif claims[sources[0]] > 1 and not copies:
            reason = f"label file '{sources[0]}' fits {claims[sources[0]]} images equally well"
            yield Reject(path, reason, label_name(root, folder / sources[0]))
        else:
            yield _entry(root, folder, path, sources[0], one_based)


def _entry(root: Path, folder: Path, path: str, source: str, one_based: bool) -> Record | Reject:
    label_file = label_name(root, folder / source)
    try:
        tree = _parse(folder, source)
        _check_form(tree)
        regions = tuple(_region(element, one_based) for element in tree.iter("object"))
    except LabelProblem as problem:
        return Reject(path, str(problem), label_file)
    return Record(path, regions, labelled=True, size=_size(tree), label_file=label_file)


# --- which XML belongs to which image -----------------------------------------------------------------------------


def _files_by_image(root: Path, folder: Path, images: list[str], copies: bool) -> dict[str, list[str]]:
    by_stem: dict[str, list[str]] = {}
    for image in images:
        by_stem.setdefault(PurePosixPath(image).stem, []).append(image)
    known = frozenset(images)
    files: dict[str, list[str]] = {}
    for source in listing(folder, XML):
        candidates = by_stem.get(PurePosixPath(source).stem) or _named(folder, source, known, by_stem)
        if len(candidates) > 1 and not copies:
            candidates = _nearest(PurePosixPath(label_name(root, folder / source)), candidates, folder, source)
        for path in candidates:
            files.setdefault(path, []).append(source)
    return files


def _named(folder: Path, source: str, known: frozenset[str], by_stem: dict[str, list[str]]) -> list[str]:
    """The images that the XML's <filename> names. The name is untrusted: it is compared, never opened."""
    name = _file_name(folder, source) or stem(source)
    if name in known or "/" in name or "\\" in name:
        return [name]
    return by_stem.get(PurePosixPath(name).stem, [name])


def _nearest(xml: PurePosixPath, candidates: list[str], folder: Path, source: str) -> list[str]:
    """Choose among images with the XML's stem: those with its <filename>, then those in the most similar folder."""
    name = _file_name(folder, source)
    candidates = [path for path in candidates if PurePosixPath(path).name == name] or candidates
    scores = [_shared_folders(xml, PurePosixPath(path)) for path in candidates]
    return [path for path, score in zip(candidates, scores, strict=True) if score == max(scores)]


def _shared_folders(first: PurePosixPath, second: PurePosixPath) -> int:
    """Equal folder names from the front plus from the back: train/labels/a.xml is near to train/images/a.jpg."""
    a, b = first.parent.parts, second.parent.parts
    front = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    back = takewhile(lambda pair: pair[0] == pair[1], zip(a[::-1], b[::-1], strict=False))
    return len(list(front)) + len(list(back))


def _unassigned(folder: Path, absent: Iterable[str], files: Mapping[str, list[str]]) -> list[str]:
    """Files that fit no image and cannot be read: they may be the label of any image."""
    return [source for path in sorted(absent) for source in files[path] if not _is_readable(folder, source)]


def _is_readable(folder: Path, source: str) -> bool:
    try:
        _check_form(_parse(folder, source))
    except LabelProblem:
        return False
    return True


def _file_name(folder: Path, source: str) -> str:
    try:
        return _text(_parse(folder, source), "filename")
    except LabelProblem:
        return ""  # reported with its image


# --- reading an XML ------------------------------------------------------------------------------------------------


def _parse(folder: Path, source: str) -> Any:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        return fromstring(read_bytes(safe_join(folder, source), ONE_IMAGE))
    except DefusedXmlException as problem:
        raise LabelProblem(f"XML declares entities, which are refused: {short(str(problem))}") from None
    except (ParseError, ValueError, LookupError) as problem:
        raise LabelProblem(f"XML cannot be parsed: {problem}") from None
    except OSError as problem:
        raise LabelProblem(f"XML cannot be read: {problem.strerror}") from None


def _check_form(tree: Any) -> None:
    """Refuse XML that is no VOC file, or that holds boxes where no reader looks: without them the image is clean."""
    if tree.tag != "annotation":
        raise LabelProblem(f"no VOC file: its root is <{short(tree.tag)[1:-1]}>; allowed: <annotation>")
    if tree.find(".//object") is None and FIELDS.isdisjoint(part.tag for part in tree):
        raise LabelProblem(f"no VOC file: it has no object and none of {', '.join(sorted(FIELDS))}")
    for parent in tree.iter():
        if parent.tag not in ("object", "part") and parent.find("bndbox") is not None:
            raise LabelProblem(f"bndbox in <{short(parent.tag)[1:-1]}>; allowed: in <object>")
        if parent.tag.lower() == "object" != parent.tag:
            raise LabelProblem(f"<{parent.tag}> is not read; allowed: <object>")


def _region(element: Any, one_based: bool) -> Region:
    name = _text(element, "name")
    if not name:
        raise LabelProblem("object without a name")
    boxes = len(element.findall("bndbox"))
    if boxes != 1:
        raise LabelProblem(f"object '{name}' has {boxes or 'no'} bndbox")
    left, top, right, bottom = (
        number(_text(element, f"bndbox/{side}"), f"{side} of '{name}'") for side in ("xmin", "ymin", "xmax", "ymax")
    )
    first = 1.0 if one_based else 0.0
    box = Box(left - first, top - first, right - left + first, bottom - top + first)
    if box.w <= 0 or box.h <= 0:
        raise LabelProblem(f"box of '{name}' is empty: xmin {left:g}, ymin {top:g}, xmax {right:g}, ymax {bottom:g}")
    return Region(name, box)


def _size(tree: Any) -> tuple[int, int] | None:
    try:
        width, height = (int(number(_text(tree, f"size/{side}"), side)) for side in ("width", "height"))
    except LabelProblem:
        return None  # the size is a cross-check; many tools leave it out
    return (width, height) if width > 0 and height > 0 else None


def _text(element: Any, path: str) -> str:
    return (element.findtext(path) or "").strip()
