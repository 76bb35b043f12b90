"""Severstal steel sheets: Kaggle CSV with run-length masks, one row a defect class.

    root/train.csv                       ImageId,ClassId,EncodedPixels   or   ImageId_ClassId,EncodedPixels
    root/train_images/0002cc93b.jpg      (without that folder: images in root)

Run-lengths are column-major and 1-based, of the image's own size (256x1600 in the original). In the first shape an
image without a row is clean only if the data set is `fully_labelled`; a row with empty EncodedPixels means that the
class is absent, so an image whose rows are all empty is labelled clean. In the second shape the class is what follows
the last underscore. One unusable row sends its image, whole, to quarantine. A row is one line: a quote that is not
closed on its line spoils that line alone, and where such a line names no image, none without a row is taken as clean.

Option `image_folder`: where the images are, below root.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curate.data import KaggleRle, Record, Region, Reject
from curate.errors import CurateError
from curate.formats._common import (
    find_label_file,
    folder_below,
    join,
    label_name,
    listing,
    read_text,
    short,
    without_label,
)

CLASSES = ("1", "2", "3", "4")
CELL = r'(?:[^",]*|"[^"]*(?:""[^"]*)*")'
QUOTED = re.compile(f"{CELL}(?:,{CELL})*")
PAIRED = re.compile(r"(.+\.[A-Za-z]+)_(\w+)")
HEADERS = (["ImageId", "ClassId", "EncodedPixels"], ["ImageId_ClassId", "EncodedPixels"])


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    image: str
    label: str
    rle: str
    problem: str | None = None


def read(
    root: Path, labels: Path | None, fully_labelled: bool, *, image_folder: str = "train_images"
) -> Iterator[Record | Reject]:
    """Read the data set.

    Args:
        root: the folder of the images.
        labels: the CSV file, where it is not `train.csv` in `root`.
        fully_labelled: every defect is labelled, so that an image without a label is clean.
        image_folder: the folder of the images, below `root`.

    Returns:
        A `Record` for each image, and a `Reject` for each label or image that cannot be used.
    """
    # A flat folder of images is allowed beside the original layout; a misspelt option is not.
    default = image_folder == "train_images"
    below = "" if default and not (root / image_folder).is_dir() else image_folder
    images = [join(below, name) for name in listing(folder_below(root, below, "image_folder"))]
    source = find_label_file(root, labels, "train.csv")
    label_file = label_name(root, source)
    rows: dict[str, list[_Row]] = {}
    for row in _rows(source):
        rows.setdefault(join(below, row.image) if row.image else label_file, []).append(row)
    known = set(images)
    # A quote in the name of an image that does not exist is damage, too: the row may be that of any other image.
    unknown = (row for path, of_image in rows.items() if path not in known for row in of_image)
    lost = [f"line {row.line}" for row in unknown if row.problem or '"' in row.image]
    for path in sorted({*images, *rows}):
        if path in rows:
            yield from _entry(path, rows[path], label_file)
        else:
            yield without_label(path, fully_labelled, lost)


def _entry(path: str, rows: list[_Row], label_file: str) -> Iterator[Record | Reject]:
    bad = [Reject(path, row.problem, label_file, row.line) for row in rows if row.problem]
    yield from bad
    if not bad:
        regions = tuple(Region(row.label, KaggleRle(row.rle), row.line) for row in rows if row.rle)
        yield Record(path, regions, labelled=True, label_file=label_file, line=rows[0].line)


def _rows(source: Path) -> Iterator[_Row]:
    # The csv module's own limit of 128 KB a cell is below the run-lengths of one large, ragged defect.
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 28))
    lines = read_text(source).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    header = [cell.strip() for cell in _cells(lines[0]) or [lines[0]]]
    if header not in HEADERS:
        allowed = " or ".join(",".join(names) for names in HEADERS)
        raise CurateError(f"'{source}' has the header {short(','.join(header))}; allowed: {allowed}. Correct line 1")
    for line, text in enumerate(lines[1:], 2):
        if text.strip(", \t"):
            yield _row(line, text, header)


def _cells(line: str) -> list[str] | None:
    """The cells of a line; None where its quotes are not valid CSV."""
    return next(csv.reader([line]), []) if '"' not in line or QUOTED.fullmatch(line) else None


def _row(line: int, text: str, header: list[str]) -> _Row:
    cells = [cell.strip() for cell in _cells(text) or ()]
    if len(cells) != len(header):
        problem = f"row has {len(cells)} cells, the header {len(header)}" if cells else "quotes do not fit each other"
        name = text.replace('"', "").split(",")[0].strip()  # the image, as far as it can be read, in either shape
        paired = PAIRED.fullmatch(name)
        image, label = paired.groups() if paired else (name, "")
        return _Row(line, image, label, "", problem)
    image, label = (cells[0], cells[1]) if len(header) == 3 else _split(cells[0])
    rle = cells[-1]
    if not image:
        return _Row(line, image, label, rle, f"row {short(','.join(cells))} names no image")
    if not label:
        return _Row(line, image, label, rle, f"row of '{image}' has an empty class id")
    return _Row(line, image, label, rle)


def _split(key: str) -> tuple[str, str]:
    image, underscore, label = key.rpartition("_")
    return (image, label) if underscore else (key, "")
