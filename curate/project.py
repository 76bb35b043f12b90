"""`projects/<name>/project.toml` as frozen models, and where a project keeps its state.

Defaults < file < flags. Paths are relative to the project's folder. Secrets never stand here: environment only.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from curate.data import Source
from curate.errors import CurateError, did_you_mean, unknown
from curate.paths import safe_join

FILE = "project.toml"
SYNTHETIC = "(synthetic)"  # the source of what `curate synth` made; its images lie in work/synth
ENV_PROJECT = "CURATE_PROJECT"
MOST_BYTES = 1 << 20  # of project.toml
MOST_LINES = 2000  # of project.toml, searched for the line of an error
# Distinct in hue and lightness, readable on grey steel; the order is the order of classes in project.toml.
PALETTE = ("#e6194b", "#ffd60a", "#3cb44b", "#4363d8", "#f58231", "#b34be6", "#42d4f4", "#f032e6", "#bfef45", "#fabed4")


KeyPath = tuple[str | int, ...]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(_Model):
    """One folder of images and, where there are any, its labels."""

    format: str
    data: Path
    name: str = ""
    kind: Source = "public"
    labels: Path | None = None
    fully_labelled: bool = False
    group: str | None = None
    template: str | None = None
    stratum: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    classes: dict[str, str] = Field(default_factory=dict)

    @field_validator("data", "labels")
    @classmethod
    def _is_a_path(cls, value: Path | None) -> Path | None:
        if value is not None and "\0" in str(value):
            raise ValueError("a path may not hold a zero byte")
        try:
            value.expanduser() if value else None
        except RuntimeError:
            raise ValueError("there is no user of this name") from None
        return value

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {str(error) or type(error).__name__}") from None
        return value

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if ":" in value or "/" in value:
            raise ValueError("a source's name may not hold ':' or '/': they separate it from a path and from a group")
        return value

    @model_validator(mode="after")
    def _fields_exist(self) -> SourceConfig:
        fields = re.findall(r"\{(\w+)\}", self.template or "")
        twice = next((name for name in fields if fields.count(name) > 1), None)
        odd = next((name for name in fields if not name.isidentifier()), None)
        if twice or odd:
            raise ValueError(f"template '{self.template}': field {{{twice or odd}}} is repeated or is not a name")
        rest = re.sub("|".join(rf"\{{{name}\}}" for name in fields) or "$", "", self.stratum or "")
        if "{" in rest or "}" in rest:
            allowed = ", ".join(f"{{{name}}}" for name in fields) or "none without a template"
            raise ValueError(f"stratum '{self.stratum}' names a field that is not in the template; allowed: {allowed}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("name") or "format" not in values:
            return values
        return values | {"name": values["format"]}


class ClassConfig(_Model):
    name: str = Field(min_length=1)
    color: str | None = Field(default=None, pattern=r"^#[0-9a-fA-F]{6}$")
    description: str = ""
    retired: bool = False


class SplitConfig(_Model):
    ratio: str = "70/15/15"
    seed: int = 42

    @property
    def shares(self) -> dict[str, float]:
        return dict(zip(("train", "val", "test"), parse_ratio(self.ratio), strict=True))

    @field_validator("ratio")
    @classmethod
    def _parses(cls, value: str) -> str:
        try:
            parse_ratio(value)
        except CurateError as error:
            raise ValueError(str(error)) from None
        return value


class LimitsConfig(_Model):
    max_pixels: int = Field(default=200_000_000, gt=0)
    verify: Literal["tail", "decode"] = "tail"
    boxes: Literal["clip", "quarantine"] = "clip"


class PromotionConfig(_Model):
    """Floors that a model must reach on test to become production's, as shares of 0 to 1.

    `min_recall` counts for each class of which test has enough groups, `max_false_alarms` for clean images.
    """

    min_recall: float = Field(default=0.25, ge=0, le=1)
    max_false_alarms: float = Field(default=0.5, ge=0, le=1)
    max_calibration_error: float = Field(default=0.25, ge=0, le=1)


class SelectConfig(_Model):
    """Defaults of `curate select`; `options` are the strategy's."""

    strategy: str = "portfolio"
    budget: str = "500"
    per_stratum: int | Literal["equal", "proportional"] | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("budget", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class LabelStudioConfig(_Model):
    """Images and tasks for the annotators. The server's address and token come only from the environment."""

    images: Literal["local", "upload", "url"] = "local"
    url: str | None = None
    signed_hours: int = Field(default=168, gt=0)
    overlap: float = Field(default=0.0, ge=0, le=1)
    annotators: int = Field(default=2, ge=2, le=9)
    agreement: float = Field(default=0.5, ge=0, le=1)
    severities: tuple[str, ...] = ()
    skip_reasons: tuple[str, ...] = Field(
        default=("too dark", "glare", "blurred", "not steel", "unknown defect"), min_length=1
    )

    @field_validator("severities", "skip_reasons")
    @classmethod
    def _plain(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not value.strip() or "," in value or values.count(value) > 1:
                raise ValueError(f"'{value}' is empty, repeated, or holds a comma, which separates reasons")
        return values

    @model_validator(mode="after")
    def _addressed(self) -> LabelStudioConfig:
        if self.images == "url" and not self.url:
            raise ValueError('images = "url" needs url, for example "s3://bucket/{source}/{path}"')
        if self.url and "{path}" not in self.url:
            raise ValueError(f"url '{self.url}' must hold {{path}}, and may hold {{source}}")
        return self


class ProjectConfig(_Model):
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    classes: tuple[ClassConfig, ...] = ()
    aliases: dict[str, str] = Field(default_factory=dict)
    dataset: str | None = None
    splits: SplitConfig = SplitConfig()
    limits: LimitsConfig = LimitsConfig()
    select: SelectConfig = SelectConfig()
    labelstudio: LabelStudioConfig = LabelStudioConfig()
    promotion: PromotionConfig = PromotionConfig()

    @model_validator(mode="after")
    def _unique(self) -> ProjectConfig:
        for what, names in (("source", [s.name for s in self.sources]), ("class", [c.name for c in self.classes])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} name '{twice[0]}' is used twice; names must differ")
        return self


@dataclass(frozen=True)
class Project:
    """A project's folder and its resolved config."""

    folder: Path
    config: ProjectConfig

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def file(self) -> Path:
        return self.folder / FILE

    @property
    def dataset_name(self) -> str:
        """The FiftyOne dataset's name: unique to the folder, unless `dataset = "..."` names one that machines share."""
        return self.config.dataset or f"{self.name}-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"

    @property
    def class_names(self) -> list[str]:
        return [c.name for c in self.config.classes]

    @property
    def active_classes(self) -> list[str]:
        """The classes that are still labelled."""
        return [c.name for c in self.config.classes if not c.retired]

    @property
    def retired_classes(self) -> frozenset[str]:
        """The classes that are no longer offered. An image that shows nothing else is not clean: it is not used."""
        return frozenset(c.name for c in self.config.classes if c.retired)

    @cached_property
    def colors(self) -> dict[str, str]:
        return {c.name: c.color or PALETTE[i % len(PALETTE)] for i, c in enumerate(self.config.classes)}

    def source(self, name: str) -> SourceConfig:
        """Return the source of this name. Raises CurateError for an unknown one."""
        for source in self.config.sources:
            if source.name == name:
                return source
        raise unknown("source", name, [s.name for s in self.config.sources], f"See {self.file}")

    def root(self, source: SourceConfig) -> Path:
        """Return the folder of the source's images."""
        return self._absolute(source.data)

    def labels(self, source: SourceConfig) -> Path | None:
        return self._absolute(source.labels) if source.labels else None

    def locate(self, reference: str) -> Path:
        """Return the file of an untrusted `source:path`. Raises LabelProblem if it leads out of the data root."""
        name, _, path = reference.partition(":")
        return safe_join(self._root_of(name), path)

    def path(self, reference: str) -> Path:
        """Return the file of a `source:path` reference that the index has checked and kept."""
        name, _, path = reference.partition(":")
        return self._root_of(name) / path

    def _root_of(self, source: str) -> Path:
        return self.work / "synth" if source == SYNTHETIC else self.root(self.source(source))

    def _absolute(self, path: Path) -> Path:
        return Path(os.path.normpath(self.folder / path.expanduser()))


def parse_ratio(text: str) -> tuple[float, float, float]:
    """Return `70/15/15` as three shares that add up to one."""
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        raise CurateError(f"split '{text}' is not three numbers; write train/val/test, for example 70/15/15") from None
    total = train + val + test
    if not (min(train, val, test) >= 0 and train > 0 and total < float("inf")):
        raise CurateError(f"split '{text}' needs a train share above 0 and none below 0, for example 70/15/15")
    return train / total, val / total, test / total


def load(folder: Path, overrides: Mapping[str, Any] | None = None) -> Project:
    """Return the project in `folder`; `overrides` ({"splits": {"ratio": ...}}) are the command line's flags."""
    file = folder / FILE
    try:
        status = file.stat()
        if stat.S_ISFIFO(status.st_mode):
            raise CurateError(f"{file} is a named pipe, not a regular file")
        if status.st_size > MOST_BYTES:
            raise CurateError(f"{file} is larger than {MOST_BYTES >> 20} MB: not a config of curate's")
        text = file.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise CurateError(f"no project at {folder}: {FILE} is missing. Make one with: curate init") from None
    except OSError as error:
        raise CurateError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # an impossible date or number raises ValueError
        raise CurateError(f"{file}: not valid TOML: {error}") from None
    config = _validate(values, lambda names: f"{file}{_line_of(names, text)}: ")
    if overrides:  # the file is sound: an error now comes from a flag
        config = _validate(_merged(values, overrides), lambda names: "")
    return Project(folder.resolve(), config)


def checked_source(values: Mapping[str, Any]) -> SourceConfig:
    """Return the source that flags describe. Raises CurateError as for one in a file."""
    return _validate({"sources": [dict(values)]}, lambda names: "").sources[0]


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merged(base.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


def _validate(values: dict[str, Any], where: Callable[[KeyPath], str]) -> ProjectConfig:
    try:
        return ProjectConfig.model_validate(values)
    except ValidationError as error:
        raise CurateError(_explain(error, where)) from None


def _explain(error: ValidationError, where: Callable[[KeyPath], str]) -> str:
    # A misspelt key comes first: often it is why another one is missing.
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    names = [str(part) for part in first["loc"] if isinstance(part, str)]
    place = where(first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(names[:-1])
        return f"{place}unknown key '{names[-1]}'{did_you_mean(names[-1], known)}; allowed: {', '.join(known)}"
    value = first.get("input")
    shown = f" (it is {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{place}{'.'.join(names) or 'project'}: {first['msg'].removeprefix('Value error, ')}{shown}"


def _known_keys(key_path: list[str]) -> list[str]:
    models: dict[str, type[_Model]] = {
        "sources": SourceConfig,
        "classes": ClassConfig,
        "splits": SplitConfig,
        "limits": LimitsConfig,
        "select": SelectConfig,
        "labelstudio": LabelStudioConfig,
    }
    model = models.get(key_path[0], ProjectConfig) if key_path else ProjectConfig
    return sorted(model.model_fields)


def _line_of(key_path: KeyPath, text: str) -> str:
    """Return `:12`, the line where that key (or else the table that lacks it) begins; empty for the whole file.

    TOML readers keep no positions, so this parses ever more lines until the values hold the key.
    """
    lines = text.split("\n")[:MOST_LINES]
    depth_so_far, first_line, place = 0, 1, ""
    for number in range(1, len(lines) + 1):
        try:
            values = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue  # inside a value of several lines
        if (depth := _existing_steps(values, key_path)) > depth_so_far:
            depth_so_far, place = (
                depth,
                f":{_line_of_key(key_path[depth - 1], lines[first_line - 1 : number], first_line)}",
            )
        first_line = number + 1
    return place


def _existing_steps(values: Any, key_path: KeyPath) -> int:
    """Return how many steps of the path exist in these values."""
    for depth, part in enumerate(key_path):
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return depth
    return len(key_path)


def _line_of_key(key: str | int, lines: list[str], first: int) -> int:
    """Return the first line that writes the key, inside a value of several lines."""
    pattern = re.compile(rf"(?<![\w-]){re.escape(str(key))}[\"']?\s*=")
    return next((first + i for i, line in enumerate(lines) if pattern.search(line)), first)


# --- which project a command means ---------------------------------------------------------------------------------


def find(wanted: str | None = None, start: Path | None = None) -> Path:
    """Return the project's folder: `--project`, else CURATE_PROJECT, else the current folder's, else the only one."""
    here = (start or Path.cwd()).resolve()
    wanted = wanted or os.environ.get(ENV_PROJECT) or None
    if wanted:
        return _named(wanted, here)
    for folder in (here, *here.parents):
        if (folder / FILE).is_file():
            return folder
    return _only(known_projects(here), here)


def known_projects(here: Path) -> dict[str, Path]:
    """Return all projects below the nearest `projects/` folder at or above `here`."""
    home = projects_folder(here)
    return {file.parent.name: file.parent for file in sorted(home.glob(f"[!.]*/{FILE}"))}


def projects_folder(here: Path) -> Path:
    """Return the nearest `projects/` at or above `here` that holds a project, else `here/projects`."""
    for folder in (here, *here.parents):
        if any((folder / "projects").glob(f"*/{FILE}")):
            return folder / "projects"
    return here / "projects"


def _named(wanted: str, here: Path) -> Path:
    path = Path(wanted).expanduser()
    path = path.parent if path.name == FILE else path
    if (here / path / FILE).is_file():
        return (here / path).resolve()
    projects = known_projects(here)
    if wanted in projects:
        return projects[wanted]
    before = sorted((here / path).glob(f"{FILE}.before-*"))
    if before:
        raise CurateError(
            f"{here / path} is no project: a restore into it was interrupted. Run that restore again; what was there "
            f"before is kept as {before[-1].name}, and beside it"
        )
    raise unknown("project", wanted, projects, "Give a name, or the folder that holds project.toml")


def _only(projects: Mapping[str, Path], here: Path) -> Path:
    if len(projects) == 1:
        return next(iter(projects.values()))
    if not projects:
        raise CurateError(f"no project found at or below {here}. Make one: curate init NAME --format FORMAT --data DIR")
    names = ", ".join(sorted(projects))
    raise CurateError(f"several projects: {names}. Say which: --project NAME (or set {ENV_PROJECT})")
