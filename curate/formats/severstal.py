"""Severstal steel sheets: Kaggle CSV with run-length masks, one row a defect class.

    root/train.csv                       ImageId,ClassId,EncodedPixels   or   ImageId_ClassId,EncodedPixels
    root/train_images/0002cc93b.jpg      (without that folder: images in root)

Run-lengths are column-major and 1-based, of the image's own size (256x1600 in the original). In the first shape an
image without a row is clean only if the data set is `fully_labelled`; a row with empty EncodedPixels says that the
class is absent, so an image whose rows are all empty is labelled clean. In the second shape the class is what follows
the last underscore. One unusable row sends its image, whole, to quarantine.

Option `image_folder`: where the images are, below root.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curate.data import KaggleRle, Record, Region, Reject
from curate.errors import CurateError
from curate.formats._common import find_label_file, folder_below, join, label_name, listing, read_text, short

CLASSES = ("1", "2", "3", "4")
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
    # A flat folder of images is as usual as the original layout; a misspelt option is not.
    default = image_folder == "train_images"
    below = "" if default and not (root / image_folder).is_dir() else image_folder
    images = [join(below, name) for name in listing(folder_below(root, below, "image_folder"))]
    source = find_label_file(root, labels, "train.csv")
    label_file = label_name(root, source)
    rows: dict[str, list[_Row]] = {}
    for row in _rows(source):
        rows.setdefault(join(below, row.image) if row.image else label_file, []).append(row)
    for path in sorted({*images, *rows}):
        yield from _entry(path, rows.get(path, []), label_file, fully_labelled)


def _entry(path: str, rows: list[_Row], label_file: str, fully_labelled: bool) -> Iterator[Record | Reject]:
    bad = [Reject(path, row.problem, label_file, row.line) for row in rows if row.problem]
    if bad:
        yield from bad
    elif rows:
        regions = tuple(Region(row.label, KaggleRle(row.rle), row.line) for row in rows if row.rle)
        yield Record(path, regions, labelled=True, label_file=label_file, line=rows[0].line)
    else:
        yield Record(path, labelled=fully_labelled)


def _rows(source: Path) -> Iterator[_Row]:
    # The csv module's own limit of 128 KB a cell is below the run-lengths of one large, ragged defect.
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 28))
    reader = csv.reader(io.StringIO(read_text(source), newline=""))
    header = [cell.strip() for cell in next(reader, [])]
    if header not in HEADERS:
        allowed = " or ".join(",".join(names) for names in HEADERS)
        raise CurateError(f"'{source}' has the header {short(','.join(header))}; allowed: {allowed}. Correct line 1")
    line = reader.line_num + 1
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield _row(line, [cell.strip() for cell in cells], header)
        line = reader.line_num + 1


def _row(line: int, cells: list[str], header: list[str]) -> _Row:
    image, label = (cells[0], "".join(cells[1:2])) if len(header) == 3 else _split(cells[0])
    rle = cells[-1]
    if len(cells) != len(header):
        return _Row(line, image, label, rle, f"row has {len(cells)} cells, the header {len(header)}")
    if not image:
        return _Row(line, image, label, rle, f"row {short(','.join(cells))} names no image")
    if not label:
        return _Row(line, image, label, rle, f"row of '{image}' has an empty class id")
    return _Row(line, image, label, rle)


def _split(key: str) -> tuple[str, str]:
    image, underscore, label = key.rpartition("_")
    return (image, label) if underscore else (key, "")
