"""YOLO text files: one an image, boxes or polygons in fractions of the image.

    root/data.yaml                       (names; or classes.txt, obj.names, or the option `names`)
    root/images/train/a.jpg
    root/labels/train/a.txt              0 0.5 0.5 0.2 0.1        class, centre x, centre y, width, height
                                         1 0.1 0.1 0.4 0.1 0.3 0.3        class and three or more points
A text file may also lie beside its image. An empty one means that the image is clean; an image without one is clean
only if the data set is `fully_labelled`. One unusable line sends its image, whole, to quarantine; so does a value
outside of the image by more than a hundredth (it is then no fraction at all).

Option `names`: the class names in the order of their numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from curate.data import Polygon, Record, Region, Reject, RelativeBox, Shape
from curate.errors import CurateError, LabelProblem
from curate.formats._common import (
    ONE_IMAGE,
    find_label_folder,
    label_name,
    listing,
    number,
    read_text,
    short,
    stem,
    without_label,
)
from curate.paths import safe_join

NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
NOT_LABELS = frozenset({"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"})
SLACK = 0.01
NAMES_LIMIT = 256 << 10  # bytes of a file of class names


def read(
    root: Path, labels: Path | None, fully_labelled: bool, *, names: list[str] | None = None
) -> Iterator[Record | Reject]:
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: the folder of the text files, where it is not at its usual place.
        fully_labelled: every defect is labelled, so that an image without a label is clean.
        names: the class names in the order of their numbers; None: from a file.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    folder = find_label_folder(root, labels, ())
    class_names = dict(enumerate(names)) if names else _names(root, folder)
    images = listing(root)
    files = _files_by_image(images, folder, labels is not None)
    lost = _by_stem(files[path] for path in files.keys() - set(images))
    for path in sorted({*images, *files}):
        if path in files:
            yield from _entry(root, folder, path, files[path], class_names)
        else:
            yield without_label(path, fully_labelled, lost.get(PurePosixPath(path).stem, ()))


def _entry(root: Path, folder: Path, path: str, source: str, class_names: dict[int, str]) -> Iterator[Record | Reject]:
    label_file = label_name(root, folder / source)
    try:
        lines = read_text(safe_join(folder, source), ONE_IMAGE).splitlines()
    except LabelProblem as problem:
        yield Reject(path, str(problem), label_file)
        return
    regions: list[Region] = []
    rejects: list[Reject] = []
    for line, text in enumerate(lines, 1):
        try:
            regions += [_region(text.split(), class_names, line)] if text.strip() else []
        except LabelProblem as problem:
            rejects.append(Reject(path, str(problem), label_file, line))
    yield from rejects
    if not rejects:
        first = regions[0].line if regions else None
        yield Record(path, tuple(regions), labelled=True, label_file=label_file, line=first)


# --- which text file belongs to which image -----------------------------------------------------------------------


def _files_by_image(images: list[str], folder: Path, separate: bool) -> dict[str, str]:
    """Text file by image; `separate`: all of `folder` is labels, so each of its files must have an image."""
    texts = set(listing(folder, frozenset({".txt"})))
    stems = Counter(PurePosixPath(image).stem for image in images)
    files: dict[str, str] = {}
    for image in images:
        places = _places(image, separate and stems[PurePosixPath(image).stem] == 1)
        text_file = next((place for place in places if place in texts), None)
        if text_file:
            files[image] = text_file
    for orphan in sorted(text for text in texts - set(files.values()) if PurePosixPath(text).name not in NOT_LABELS):
        if separate or "labels" in PurePosixPath(orphan).parts:
            # The suffix is unknown: the index reports the bare stem as missing.
            files[stem(_swap(orphan, "labels", "images"))] = orphan
    return files


def _by_stem(sources: Iterable[str]) -> dict[str, list[str]]:
    """Text files without an image, by stem: their image may be in any of several folders."""
    by_stem: dict[str, list[str]] = {}
    for source in sorted(sources):
        by_stem.setdefault(PurePosixPath(source).stem, []).append(source)
    return by_stem


def _places(image: str, by_stem: bool) -> list[str]:
    """Possible places of an image's text file, the usual one first."""
    parts = PurePosixPath(image).parts
    below = parts[len(parts) - parts[::-1].index("images") :] if "images" in parts else parts
    flat = [PurePosixPath(image).stem] if by_stem else []
    mirrored = stem(_swap(image, "images", "labels"))
    return [f"{place}.txt" for place in (mirrored, stem(image), stem("/".join(below)), *flat)]


def _swap(path: str, old: str, new: str) -> str:
    """The path with its last folder `old` replaced by `new`."""
    parts = list(PurePosixPath(path).parts)
    if old in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index(old)] = new
    return "/".join(parts)


# --- class names --------------------------------------------------------------------------------------------------


def _names(root: Path, folder: Path) -> dict[int, str]:
    places = [place / name for place in (root, folder) for name in NAME_FILES]
    source = next((path for path in places if path.exists()), None)
    if source is None:
        allowed = ", ".join(NAME_FILES)
        raise CurateError(f"no class names below '{root}'; allowed: {allowed}. Add one or set the option `names`")
    source = safe_join(source.parent, source.name)
    if source.suffix in (".yaml", ".yml"):
        return _yaml_names(source)
    lines = read_text(source, NAMES_LIMIT).splitlines()
    return {i: line.strip() for i, line in enumerate(lines) if line.strip()}


def _yaml_names(source: Path) -> dict[int, str]:
    import yaml  # type: ignore[import-untyped]

    class Plain(yaml.SafeLoader):  # type: ignore[misc]
        """A loader that refuses aliases: a few lines of them can expand to more names than memory holds."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases such as *a are refused")
            return super().compose_node(parent, index)

    try:
        names = yaml.load(read_text(source, NAMES_LIMIT), Loader=Plain)["names"]  # noqa: S506 - a safe loader
        if not isinstance(names, (list, dict)):
            raise TypeError(f"names is {short(names)}")
        pairs = list(names.items() if isinstance(names, dict) else enumerate(names))
        if not all(isinstance(name, str | int | float) for _, name in pairs):
            raise TypeError("a name is no text")
        return {int(key): str(name) for key, name in pairs}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as problem:
        reason = short(str(problem))
        raise CurateError(f"'{source}' has no readable list `names` ({reason}). Correct it or set `names`") from None


# --- one line -----------------------------------------------------------------------------------------------------


def _region(fields: list[str], class_names: dict[int, str], line: int) -> Region:
    index = number(fields[0], "class index")
    if index not in class_names:
        allowed = ", ".join(str(key) for key in list(class_names)[:20])
        raise LabelProblem(f"class index {short(fields[0])} has no name; allowed: {allowed}")
    return Region(class_names[int(index)], _shape([_fraction(text) for text in fields[1:]]), line)


def _fraction(text: str) -> float:
    value = number(text, "coordinate")
    if not -SLACK <= value <= 1 + SLACK:
        raise LabelProblem(f"coordinate is {text}; allowed: a fraction of the image from 0 to 1")
    return value


def _shape(values: list[float]) -> Shape:
    if len(values) == 4:
        x, y, w, h = values
        if w <= 0 or h <= 0:
            raise LabelProblem(f"box is empty: width {w:g}, height {h:g}")
        return RelativeBox(x - w / 2, y - h / 2, w, h)
    if len(values) < 6 or len(values) % 2:
        raise LabelProblem(f"line has {len(values)} coordinates; allowed: 4 (box) or an even number from 6 (polygon)")
    return Polygon((tuple(zip(values[::2], values[1::2], strict=True)),), relative=True)
