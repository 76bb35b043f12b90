"""`curate init` and `curate demo`: write a commented project.toml as a starting point."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate import files, formats
from curate.admin.layout import Layout, guess
from curate.data import SOURCES, Record, Reject
from curate.errors import CurateError, unknown
from curate.index.intake import SourceRules, group_of, stratum_of, template_pattern
from curate.project import FILE, PALETTE, LimitsConfig, Project, checked_source, load, projects_folder

if TYPE_CHECKING:
    from curate.demo import plant

PRODUCTION_FORMATS = ("images",)
LAYOUT = ("template", "stratum", "group")
NOT_GIVEN = Layout()
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class PlacedImage:
    """An image's path with the stratum and group that the config gives it; None where it gives none."""

    path: str
    stratum: str | None
    group: str | None


@dataclass(frozen=True)
class ProjectPlan:
    """A project that can be created.

    Args:
        folder: Its folder.
        source: Its first source, as project.toml has it.
        classes: The classes that the label files name.
        guessed: The keys of the source that were guessed.
        placed: The images with their group and stratum.
    """

    folder: Path
    source: dict[str, Any]
    classes: list[str]
    guessed: tuple[str, ...] = ()
    placed: tuple[PlacedImage, ...] = ()

    @property
    def made(self) -> bool:
        """True if the project stands there already, with just this config."""
        file, text = self.folder / FILE, _text(self.folder, [self.source], self.classes)
        return file.exists() and file.read_bytes() == text.encode()

    def examples(self, most: int) -> list[PlacedImage]:
        """One image of each stratum (of each group, where there are no strata), those without any first."""
        key = "stratum" if self.source["template"] else "group"
        first: dict[str | None, PlacedImage] = {}
        for image in self.placed:
            first.setdefault(getattr(image, key), image)
        return sorted(first.values(), key=lambda image: getattr(image, key) is not None)[:most]


def init(
    name: str,
    format: str,
    data: Path,
    labels: Path | None = None,
    fully_labelled: bool = False,
    kind: str | None = None,
    options: Sequence[str] = (),
    layout: Layout = NOT_GIVEN,
) -> Project:
    """Write a new project's config, with the classes of the label files; see `plan`."""
    return make(plan(name, format, data, labels, fully_labelled, kind, options, layout))


def make(planned: ProjectPlan) -> Project:
    """Write the config of a planned project; one that stands there already, with just this config, is left as it is."""
    if planned.made:
        return load(planned.folder)
    return write(planned.folder, [planned.source], planned.classes)


def plan(
    name: str,
    format: str,
    data: Path,
    labels: Path | None = None,
    fully_labelled: bool = False,
    kind: str | None = None,
    options: Sequence[str] = (),
    layout: Layout = NOT_GIVEN,
) -> ProjectPlan:
    """Plan a new project: check it, but do not write it.

    Args:
        name: the project's name, or the path of its folder.
        format: the format of the images and labels.
        data: the folder of the images.
        labels: the label file or folder, where it is not at its usual place.
        fully_labelled: every defect is labelled, so that an image without a label is clean.
        kind: `public` or `production`; by default `production` for plain images.
        options: the format's options, as KEY=VALUE.
        layout: template, stratum and group; None is guessed from the paths of production images, an empty text means
            that there is none.

    Returns:
        The plan, which `make` writes.
    """
    folder = _new_folder(name)
    source: dict[str, Any] = {"format": format, "data": data, "fully_labelled": fully_labelled}
    source["kind"] = kind or ("production" if format in PRODUCTION_FORMATS else "public")
    source |= {"labels": labels, "options": formats.CATALOGUE.parse(format, options)} | asdict(layout)
    _check(source)
    root, label_path = data.resolve(), labels.resolve() if labels else None
    records = formats.read(format, root, label_path, fully_labelled, source["options"])  # checks options and root
    if format not in PRODUCTION_FORMATS:
        _check_layout(source)
        classes = formats.discover_classes(format, root, label_path, fully_labelled, source["options"])
        placed = _placed(source, records if layout != NOT_GIVEN else ())
        return _checked_plan(ProjectPlan(folder, source, classes, placed=placed))
    images = list(records)
    guessed = _guessed([image.path for image in images], source)
    source |= guessed
    _check_layout(source)
    return _checked_plan(ProjectPlan(folder, source, [], tuple(guessed), _placed(source, images)))


def _checked_plan(planned: ProjectPlan) -> ProjectPlan:
    """Refuse a plan for a folder that holds another project, or the same one with other settings."""
    file = planned.folder / FILE
    if file.exists() and not planned.made:
        raise CurateError(
            f"project '{planned.folder.name}' exists already, with other settings: edit {file}, or choose another name"
        )
    return planned


def _check_layout(source: Mapping[str, Any]) -> None:
    checked_source({"format": source["format"], "data": "."} | {name: source[name] or None for name in LAYOUT})


def _guessed(paths: Sequence[str], source: Mapping[str, Any]) -> dict[str, str]:
    """Guesses of what was not given. A stratum uses its template's fields: with a given template it is not guessed."""
    layout = guess(paths)
    missing = [name for name in LAYOUT if source[name] is None and (name != "stratum" or source["template"] is None)]
    return {name: value for name in missing if (value := getattr(layout, name))}


def _placed(source: Mapping[str, Any], records: Iterable[Record | Reject]) -> tuple[PlacedImage, ...]:
    rules = SourceRules(
        root=source["data"],
        limits=LimitsConfig(),
        names={},
        allowed=frozenset(),
        template=template_pattern(source["template"]) if source["template"] else None,
        stratum=source["stratum"] or None,
        group=re.compile(source["group"]) if source["group"] else None,
    )
    return tuple(
        PlacedImage(
            record.path, record.stratum or stratum_of(record.path, rules), record.group or group_of(record.path, rules)
        )
        for record in records
        if isinstance(record, Record)
    )


def demo(
    folder: Path | None, images: int, seed: int, progress: Callable[[int], None]
) -> tuple[Project, plant.DemoSummary]:
    """Draw the demo plant and create its project: a labelled library, and unlabelled production images."""
    from curate.demo import plant, steel

    folder = (folder or projects_folder(Path.cwd()) / "demo").resolve()
    drawn = 0

    def advance(total: int) -> None:
        nonlocal drawn
        progress(total - drawn)
        drawn = total

    summary = plant.draw(folder / "data", images, seed, progress=advance)
    if (folder / FILE).exists():
        return load(folder), summary
    names = {str(number): name for number, name in enumerate(steel.CLASSES, start=1)}
    coil = r"([^/]+)_\d+\.[a-z]+$"
    library = {"name": "library", "format": "severstal", "data": folder / "data" / "library", "fully_labelled": True}
    production = {"name": "plant", "format": "images", "data": folder / "data" / "plant", "kind": "production"}
    production |= {"template": "{line}/{camera}/{date}/{name}", "stratum": "{line}/{camera}", "group": coil}
    return write(folder, [library | {"classes": names, "group": coil}, production], steel.CLASSES), summary


def write(folder: Path, sources: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Project:
    """Write a project.toml and load it; leave nothing where that fails."""
    text = _text(folder, sources, classes)
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        files.write_text(folder / FILE, text)
        return load(folder)
    except BaseException:
        (folder / FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for path in new_folders:
                path.rmdir()
        raise


def _new_folder(name: str) -> Path:
    path = Path(name).expanduser()
    folder = projects_folder(Path.cwd()) / name if len(path.parts) == 1 else path.resolve()
    if not name or not NAME.fullmatch(folder.name):
        shown = folder.name if name else ""
        raise CurateError(
            f"project name '{shown}' may hold letters, digits, '.', '_' and '-' only, a letter or digit first"
        )
    return folder


def _check(source: Mapping[str, Any]) -> None:
    formats.load(source["format"])
    if source["kind"] not in SOURCES[:2]:
        raise unknown("kind", source["kind"], SOURCES[:2])
    for what in ("data", "labels"):
        if source[what] and not source[what].exists():
            raise CurateError(f"--{what} {source[what]}: no such file or folder. Give the path of the {what}")


# --- the text of project.toml ---------------------------------------------------------------------------------------


def _text(folder: Path, sources: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    return "\n".join([_head(folder.name), *(_source(folder, s) for s in sources), _SECOND, _classes(classes), _TAIL])


def _head(name: str) -> str:
    return f"# {name}: the config of a curate project. Paths are relative to this file's folder.\n"


def _source(folder: Path, source: Mapping[str, Any]) -> str:
    lines = ["[[sources]]"]
    for key in (
        "name",
        "format",
        "data",
        "labels",
        "kind",
        "fully_labelled",
        "group",
        "template",
        "stratum",
        "classes",
    ):
        if source.get(key):
            value = _relative(source[key], folder) if isinstance(source[key], Path) else source[key]
            lines.append(f"{key} = {_toml(value)}{_COMMENTS.get(key, '')}")
    if source.get("options"):
        lines.append(f"options = {_toml(source['options'])}")
    return "\n".join(lines) + "\n"


_COMMENTS = {
    "fully_labelled": "  # an image without any label is clean",
    "group": "  # pattern over the path: images of one physical piece; splits never cut through it",
    "template": "  # how production paths are built",
    "stratum": "  # what quotas are set on",
}

_SECOND = """# Further sources are indexed into the same dataset, for example unlabelled production images:
# [[sources]]
# name = "line-a"
# format = "images"
# kind = "production"
# data = "/mnt/line-a"
# template = "{line}/{camera}/{date}/{coil}_{name}"
# stratum = "{line}/{camera}"
# group = "/([^/_]+)_"                  # one coil is one group
# classes = { "Riss" = "crack" }        # label in the source = class of this project
"""

_TAIL = """# [aliases]                              # old class name = new one; kept by `curate classes`
# [splits]
# ratio = "70/15/15"                    # train/val/test, given once per group, then frozen
# seed = 42
# [limits]
# max_pixels = 200000000                # more is taken for a decompression bomb
# verify = "tail"                       # "decode" reads every pixel: slow, finds damage inside a file
# boxes = "clip"                        # or "quarantine": boxes that leave the image
# [select]                              # defaults of `curate select`
# strategy = "portfolio"
# budget = "500"                        # or people's time: "4h"
# per_stratum = "equal"                 # or "proportional", or the most picks from one stratum
# options = { audit = 0.2 }             # of the strategy; `curate select --list` shows them
# [labelstudio]                          # how `curate push` brings images to the annotators
# images = "local"                      # or "upload", or "url": signed addresses of an object store
# url = "s3://bucket/{source}/{path}"
# overlap = 0.1                         # the share of a round that `annotators` people label each
# annotators = 2
# severities = ["light", "medium", "heavy"]
# skip_reasons = ["too dark", "glare", "blurred", "not steel", "unknown defect"]
# [promotion]                            # what `curate models promote` asks of a model on test
# min_recall = 0.25                     # of each class that enough groups show
# max_false_alarms = 0.5                # share of clean images
# max_calibration_error = 0.25
# Secrets (Label Studio tokens) never stand here: they come from the environment.
"""


def _classes(classes: Sequence[str]) -> str:
    lines = ["# Change classes with `curate classes`, which also changes the labels."]
    for number, name in enumerate(classes):
        color = PALETTE[number % len(PALETTE)]
        lines += ["[[classes]]", f"name = {_toml(name)}", f'color = "{color}"', ""]
    return "\n".join(lines if classes else [*lines, ""])


def _relative(path: Path, folder: Path) -> str:
    """A relative path where project and data are in one tree, so that both can be moved; else an absolute one."""
    absolute = path.resolve()
    tree = folder.parent.parent
    return os.path.relpath(absolute, folder) if absolute.is_relative_to(tree) else str(absolute)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str) and "\\" in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise CurateError(f"a config cannot hold {value!r}; allowed: text, numbers, true, false, lists and tables")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
