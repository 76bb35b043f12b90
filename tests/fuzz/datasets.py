"""Every format: a small data set with one or two damaged files, read as `curate index` reads it, without the index.

The promise that counts: an image of which the (damaged) files still say that it shows a defect never comes out clean,
and none of its annotations is lost without a word. What the files still say is counted here once more, by plain
reading that has nothing in common with curate's.
"""

from __future__ import annotations

import io
import json
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

from tests import fakes
from tests.fuzz import mutate
from tests.fuzz.kinds import CLEANED, LOST, OK, REJECTED, WRONG, Fault, Target
from tests.fuzz.streams import kernels

LABELS = {".csv", ".json", ".xml", ".txt", ".yaml"}
CLASSES = ("1", "2", "3", "4", "crack", "hole", "scratch", "defect", "In", "Pa")
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
PLANTED = {
    ".yaml": [
        BOMB + "names: [*i, *i]\n",
        "names: &n [*n, crack]\n",
        "names: !!python/object/apply:os.system [true]\n",
        "names: " + "[" * 3000,
        "names: {0: [crack], 1: {a: b}}\n",
        "names: [null, 1.5, 2026-01-01]\n",
        "names: {0: crack, 0: hole}\n",
        "names: {" + "9" * 5000 + ": crack}\n",
        "names: {0x1: crack, 1_0: hole, .inf: x, .nan: y}\n",
        "? " * 3000,
        "names: crack\n--- \nnames: hole\n",
    ],
    ".xml": [
        "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>",
        "<annotation/>",
        "<annotation><size/></annotation>",
        '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><annotation><object><name>&c;</name></object></annotation>',
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation><filename>a.jpg</filename></annotation>',
        "<a>" * 100_000,
        "<!-- ",
        "<![CDATA[",
        "<?xml version='1.0' encoding='utf-16'?><annotation/>",
        "<?xml version='1.0' encoding='none'?><annotation/>",
        "<annotations><annotation><object><name>crack</name></object></annotation></annotations>",
    ],
    ".csv": [
        '"',
        '"a.jpg',
        "ImageId,ClassId,EncodedPixels\n",
        ",,,",
        "a.jpg,1,1 2 3\n",
        'a.jpg,1,"1 1\n',
        "a.jpg,1,1 1,",
    ],
    ".json": ["[]", "null", '{"images":[],"annotations":[],"categories":[]}', '{"images":[{"id":0}]}'],
    ".txt": [
        "",
        "\n",
        "0 nan nan nan nan\n",
        "0 0.5 0.5 0 0\n",
        "0 0.1 0.1 0.2 0.2 0.3 0.3\n",
        "1e0 .5 .5 .1 .1",
        "﻿0 .5 .5 .1 .1",
    ],
}
COCO_SHAPES: tuple[Any, ...] = (
    {"segmentation": [[1, 1, 5, 1, 5, 5]]},
    {"segmentation": [[1, 1, 9, 1, 9, 9, 1, 9], [10, 2, 12, 2, 12, 6]]},
    {"segmentation": {"size": [12, 16], "counts": [10, 4, 178]}},
    {"segmentation": {"size": [12, 16], "counts": "PPY11"}},
    {"segmentation": [], "bbox": [1, 2, 3, 4]},
    {"bbox": [0, 0, 16, 12]},
    {"segmentation": [[20, 20, 30, 20, 30, 30]]},
    {"segmentation": [[1, 1, 5, 1, 9, 1]]},
    {"segmentation": [[1, 1, 9, 1, 9, 1.01, 1, 1.01]]},
    {"segmentation": {"size": [12, 16], "counts": [192]}},
    {"segmentation": [[10, 2, 1e30, 5.65, 34.09, 49.7, 10, 2, 10, 10]]},
    {"segmentation": [[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9]]},
)


@dataclass
class Base:
    """A valid data set in memory."""

    files: dict[str, bytes]
    options: dict[str, Any] = field(default_factory=dict)


_bases: dict[str, list[Base]] = {}


# --- drawing ----------------------------------------------------------------------------------------------------------


def prepare(name: str) -> None:
    """Draw the valid data sets of a format, and load what reads them."""
    from curate.index import reading  # noqa: F401

    kernels()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        layout = fakes.FORMAT_LAYOUTS[name](root)
        _bases[name] = [Base(_files(root), layout.options), *_more(name, _files(root))]


def _files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _more(name: str, files: Mapping[str, bytes]) -> Iterator[Base]:
    """Layouts that the contract test's data set does not show."""
    if name == "mask_folder":
        masks = sorted(path for path in files if path.startswith("masks/crack/"))
        flat = {f"images/In_{i}.png": files["images/a.png"] for i in range(2)}
        flat |= {f"masks/In_{i}.png": files[masks[0]] for i in range(2)}
        yield Base(flat, {"class_from": "prefix"})
        yield Base(flat, {"class_from": "values", "values": {"crack": 255, "hole": 7}})
    if name == "severstal":
        rows = files["train.csv"].decode().replace("ImageId,ClassId", "ImageId_ClassId")
        yield Base(dict(files) | {"train.csv": re.sub(r"(\.jpg),(\d)", r"\1_\2", rows).encode()})
        flat = {path.removeprefix("train_images/"): content for path, content in files.items()}
        yield Base(flat)
    if name == "yolo":
        lines = {path: content for path, content in files.items() if path != "data.yaml"}
        yield Base(lines | {"classes.txt": b"crack\nhole\n"})
        yield Base(lines, {"names": ["crack", "hole"]})
        yield Base(dict(files) | {"labels/train/a.txt": b"1 0 0 1 0 1 1 0 1\n0 0.25 0.25 0.5 0.5\n"})


def make(name: str, random: Random, root: Path) -> dict[str, Any]:
    """One or two files of a valid data set damaged, or put out of place."""
    from curate import formats

    base = random.choice(_bases[name])
    files = dict(base.files)
    if name == "coco":
        files |= {path: _coco(random, content) for path, content in files.items() if path.endswith(".json")}
    labels = [
        path for path in files if PurePosixPath(path).suffix in LABELS or "mask" in path.lower() or _is_mask(path)
    ]
    outside = root.parent / "outside"
    _furnish(outside)
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    done = []
    for _ in range(random.choice((1, 1, 1, 2))):
        path = random.choice(labels if labels and random.random() < 0.85 else sorted(files))
        done.append((path, _damage(random, root / path, files[path], outside)))
    fully = random.random() < 0.7
    limits = {"verify": random.choice(("tail", "decode")), "boxes": random.choice(("clip", "quarantine"))}
    discover = random.random() < 0.1
    options = {key: item for key, item in base.options.items() if key in formats.options(name)}
    return {"fully": fully, "limits": limits, "discover": discover, "options": options, "damage": done}


def _is_mask(path: str) -> bool:
    return bool(re.search(r"(_label|_GT)\.\w+$|^MT_.*\.png$", path))


def _damage(random: Random, path: Path, content: bytes, outside: Path) -> str:
    if path.is_symlink() or not path.is_file():
        return "something else already"
    if random.random() < 0.12:
        if random.random() < 0.3:
            return _odd_neighbour(random, path, content)
        return mutate.other_thing(random, path, outside)
    suffix = path.suffix
    if suffix == ".json":
        path.write_bytes(mutate.json_text(random, content, outside, PLANTED[suffix]))
    elif suffix in LABELS:
        path.write_bytes(mutate.text(random, content, outside, PLANTED[suffix]))
    else:
        path.write_bytes(mutate.some_bytes(random, content, 80))
    return "content"


def _odd_neighbour(random: Random, path: Path, content: bytes) -> str:
    name = random.choice((b"\xff%s", b"a\nb%s", b" %s", b"-%s", b"a:b%s", b"%%2e%s", b"a\\b%s", b".%s", b"'\"%s"))
    odd = path.parent / (name % path.suffix.encode()).decode("utf-8", "surrogateescape")
    odd.write_bytes(content)
    return f"odd neighbour {name!r}"


def _coco(random: Random, content: bytes) -> bytes:
    """Other shapes for some annotations: whole, thin, outside, and far away."""
    found = json.loads(content)
    for number, entry in enumerate(found["annotations"]):
        if random.random() < 0.4:
            kept = {key: item for key, item in entry.items() if key not in ("segmentation", "bbox")}
            found["annotations"][number] = kept | random.choice(COCO_SHAPES)
    return json.dumps(found).encode()


def _furnish(outside: Path) -> None:
    """What lies beside the data root and must not be read."""
    if outside.is_dir():
        return
    outside.mkdir(parents=True)
    fakes.save_image(outside / "passwd.jpg", seed=99)
    for suffix in (".jpg", ".png", ".bmp"):
        fakes.save_mask(outside / f"secret{suffix}")
    (outside / "secret.xml").write_text(fakes.voc_xml("a.jpg", ("crack", 1, 2, 5, 6)))
    (outside / "secret.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (outside / "secret.csv").write_text("ImageId,ClassId,EncodedPixels\na.jpg,1,1 3\n")
    (outside / "secret.yaml").write_text("names: [crack, hole]\n")
    (outside / "secret.json").write_text(fakes.coco([], []))


# --- reading ----------------------------------------------------------------------------------------------------------


def check(name: str, case: dict[str, Any], root: Path) -> str:
    """Read the data set as the index does, and hold what came out against what the files say."""
    from curate import formats
    from curate.data import Reject
    from curate.index import reading
    from curate.index.intake import SourceRules
    from curate.project import LimitsConfig

    module = formats.load(name)
    if case["discover"]:
        formats.discover_classes(name, root, None, case["fully"], case["options"])
    allowed = frozenset({*CLASSES, *getattr(module, "CLASSES", ())})
    limits = LimitsConfig(max_pixels=4_000_000, **case["limits"])
    keeps = bool(getattr(module, "EMPTY_MASK_KEEPS_CLASS", False))
    rules = SourceRules(root, limits, {}, allowed, keeps)
    records = list(formats.read(name, root, None, case["fully"], case["options"]))
    outcomes = reading.examine_records([(record, None) for record in records], "src", rules, rules.digest)
    rejected = False
    by_path: dict[str, list[Any]] = {}
    for record, outcome in zip(records, outcomes, strict=True):
        by_path.setdefault(record.path, []).append(outcome)
        rejected |= isinstance(record, Reject) or outcome.label is None
        _sound(outcome)
    for path, least in evidence(name, root, case["options"]).items():
        _kept(path, least, by_path, root, case["fully"])
    return REJECTED if rejected else OK


def _sound(outcome: Any) -> None:
    """A row that the ledger can hold, and a label that the log can hold and give back."""
    from curate.data import Label
    from curate.masks import shapes

    problem = outcome.row.problem or ""
    if "\n" in problem:
        raise Fault(WRONG, f"a reason of more than one line: {problem[:80]!r}")
    outcome.row.reference.encode()
    if outcome.label is None:
        return
    text = json.dumps(outcome.label.to_json(), allow_nan=False)
    if Label.from_json(json.loads(text)).digest != outcome.label.digest:
        raise Fault(WRONG, f"label changes on its way through the log: {text[:80]}")
    for defect in outcome.label.defects:
        x, y, w, h = defect.box
        if not (w > 0 and h > 0 and x >= 0 and y >= 0):
            raise Fault(WRONG, f"box {defect.box}")
        if not shapes.mask_of(defect, outcome.image.width, outcome.image.height).any():
            raise Fault(WRONG, f"defect without a pixel: {defect}")


def _kept(path: str, least: int, by_path: Mapping[str, list[Any]], root: Path, fully: bool) -> None:
    found = by_path.get(path)
    if found is None:
        if (root / path).is_file():
            raise Fault(LOST, f"{path} is annotated, and the reader says nothing of it")
        return
    labels = [outcome.label for outcome in found if outcome.label is not None]
    if len(labels) < len(found):
        return  # quarantined, or not on disk
    for label in labels:
        if label.clean:
            raise Fault(CLEANED, f"{path} has {least} annotations")
        if label.status == "unlabelled" or len(label.defects) + len(label.classes) < least:
            raise Fault(
                LOST, f"{path} has {least} annotations, its label {len(label.defects)} regions ({label.status})"
            )


# --- what the files say, read once more -------------------------------------------------------------------------------


def evidence(name: str, root: Path, options: Mapping[str, Any]) -> Counter[str]:
    """At least so many annotations are there of each image."""
    found = EVIDENCE[name](root, options)
    return Counter({path: count for path, count in found.items() if count and "\0" not in path})


def _plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size < 50_000_000
    except (OSError, ValueError):
        return False


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig", "replace") if _plain(path) else ""


def _walk(root: Path, *suffixes: str) -> list[Path]:
    """Everything with such a name that is no folder: pipes, devices and links, too."""
    named = (path for path in root.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in named if path.is_symlink() or not path.is_dir())


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _images(root: Path) -> dict[str, list[str]]:
    """The images by stem."""
    found: dict[str, list[str]] = {}
    for path in _walk(root, ".jpg", ".jpeg", ".png", ".bmp"):
        if path.is_file():
            found.setdefault(path.stem, []).append(_relative(path, root))
    return found


def _severstal(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    below = "train_images/" if (root / "train_images").is_dir() else ""
    found: Counter[str] = Counter()
    for line in re.split(r"\r\n|\n|\r", _text(root / "train.csv")):
        row = re.fullmatch(r"([\w-]+\.jpg)[,_](\d+),(\d+ \d+(?: \d+ \d+)*)", line)
        if row:
            found[below + row[1]] += 1
    return found


def _voc(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    images, found = _images(root), Counter[str]()
    copies = (root / "lable").is_dir()
    for path in _walk(root, ".xml"):
        owners = images.get(path.stem, [])
        if not owners or (len(owners) > 1 and not copies):
            continue
        for owner in owners:
            found[owner] += _voc_objects(path)
    return found


def _voc_objects(path: Path) -> int:
    """Objects that stand there whole; else 1 for anything that is no annotation without objects."""
    if not _plain(path):
        return 1
    content = _text(path).replace("\0", "")  # UTF-16 is XML as well
    whole = re.findall(r"<object>\s*<name>[^<]*\w[^<]*</name>\s*<bndbox>", content)
    nothing_there = re.search(r"<annotation[\s/>]", content) and not re.search(r"bndbox|xmin|<object", content)
    return len(whole) or int(not nothing_there)


def _neu_det(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    found = _voc(root, options)
    for owners in _images(root).values():
        for path in owners:  # every image of this set shows what its name says
            if re.match(r"(scratches|patches|crazing|inclusion)_\d", PurePosixPath(path).name):
                found[path] = max(found[path], 1)
    return found


def _gc10(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    found = _voc(root, options)
    known = {path.stem for path in _walk(root, ".xml")}
    for stem, owners in _images(root).items():
        for path in owners:
            if stem not in known and re.fullmatch(r"0[1-9]|10", PurePosixPath(path).parent.name):
                found[path] = 1
    return found


class _Pairs(dict[str, Any]):
    """A JSON object in which a key that stands twice keeps both lists."""


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = _Pairs()
    for key, item in items:
        both = isinstance(found.get(key), list) and isinstance(item, list) and key == "annotations"
        found[key] = found[key] + item if both else item
    return found


def _coco_evidence(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in _walk(root, ".json"):
        if not path.name.startswith("instances"):
            continue
        try:
            content = json.loads(_text(path), object_pairs_hook=_pairs)
            owners = {(type(one["id"]), one["id"]): one["file_name"] for one in content["images"] if _is_image(one)}
            entries = [one for one in content["annotations"] if isinstance(one, dict)]
        except (ValueError, RecursionError, TypeError, KeyError):
            continue
        for one in entries:
            key = one.get("image_id")
            if type(key) in (int, str) and (type(key), key) in owners:
                name = owners[type(key), key]
                found[PurePosixPath(name).as_posix() if name.strip("./") else name] += 1
    return found


def _is_image(one: Any) -> bool:
    return isinstance(one, dict) and type(one.get("id")) in (int, str) and isinstance(one.get("file_name"), str)


def _yolo(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    found: Counter[str] = Counter()
    for owners in _images(root).values():
        for image in owners:
            mirrored = image.replace("images/", "labels/", 1)
            places = [root / PurePosixPath(path).with_suffix(".txt") for path in (mirrored, image)]
            there = [path for path in places if path.is_symlink() or (path.exists() and not path.is_dir())]
            if there and not _plain(there[0]):
                found[image] = 1
            elif there:
                found[image] = sum(bool(line.strip()) for line in _text(there[0]).split("\n"))
    return found


def _mask(path: Path, low: int, size: tuple[int, int] = (16, 12)) -> int:
    """1 if somebody who looks at the mask sees a defect in it, or no mask at all."""
    import numpy as np
    from PIL import Image

    if not _plain(path):
        return 1
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            if image.width * image.height > 1_000_000:
                return 1
            image.load()
            values = np.asarray(image if image.mode in ("L", "P", "I", "I;16", "F") else image.convert("L"))
            return int(image.size != size or bool((values >= low).any()))
    except Exception:
        return 1


def _mask_folder(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    found: Counter[str] = Counter()
    rule = options.get("class_from", "folder")
    if rule == "values" or not (root / "masks").is_dir():  # which grey value means what is the reader's to say
        return found
    for path in _walk(root / "masks", ".png"):
        stem = re.sub(r"_mask$", "", path.stem)
        image = root / "images" / f"{stem}.png"
        in_class = path.parent != root / "masks" if rule == "folder" else path.parent == root / "masks"
        if image.is_file() and in_class:
            found[_relative(image, root)] += _mask(path, 128)
    return found


def _kolektor(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in _walk(root, ".bmp", ".png"):
        name = re.fullmatch(r"(.+)_(?:label|GT)", path.stem)
        for suffix in (".jpg", ".png") if name else ():
            image = path.with_name(f"{name[1]}{suffix}")  # type: ignore[index]
            if image.is_file():
                found[_relative(image, root)] = _mask(path, 1)
    return found


def _magnetic_tile(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    images = [
        path for path in _walk(root, ".jpg") if path.is_file() and re.search(r"/MT_(?!Free)\w+/", path.as_posix())
    ]
    return Counter({_relative(path, root): 1 for path in images})  # its folder says so, whatever its mask says


def _class_folders(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    images = [path for owners in _images(root).values() for path in owners]
    return Counter({path: 1 for path in images if path.startswith("scratch/")})


def _nothing(root: Path, options: Mapping[str, Any]) -> Counter[str]:
    return Counter()


EVIDENCE: dict[str, Callable[[Path, Mapping[str, Any]], Counter[str]]] = {
    "class_folders": _class_folders,
    "coco": _coco_evidence,
    "gc10": _gc10,
    "images": _nothing,
    "kolektor": _kolektor,
    "magnetic_tile": _magnetic_tile,
    "mask_folder": _mask_folder,
    "neu_det": _neu_det,
    "severstal": _severstal,
    "voc": _voc,
    "yolo": _yolo,
}
SHARES = {"coco": 2.0, "voc": 1.5, "yolo": 1.5, "severstal": 1.5, "images": 0.3, "class_folders": 0.3}
TARGETS = [
    Target(name, partial(make, name), partial(check, name), partial(prepare, name), SHARES.get(name, 1.0))
    for name in sorted(EVIDENCE)
]
