"""`projects/<name>/project.toml` as frozen models, and where a project keeps its state.

Defaults < file < flags. Paths are relative to the project's folder. Secrets never stand here: environment only.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from curate import paths
from curate.data import Source
from curate.errors import CurateError, nearest, unknown

FILE = "project.toml"
ENV_PROJECT = "CURATE_PROJECT"
# Distinct in hue and lightness, readable on grey steel; the order is the order of classes in project.toml.
PALETTE = ("#e6194b", "#ffd60a", "#3cb44b", "#4363d8", "#f58231", "#b34be6", "#42d4f4", "#f032e6", "#bfef45", "#fabed4")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(_Model):
    """One folder of images with, perhaps, its labels."""

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

    @field_validator("group")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _named(self) -> SourceConfig:
        return self if self.name else self.model_copy(update={"name": self.format})


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
        parse_ratio(value)
        return value


class LimitsConfig(_Model):
    max_pixels: int = Field(default=200_000_000, gt=0)
    verify: Literal["tail", "decode"] = "tail"
    boxes: Literal["clip", "quarantine"] = "clip"


class ProjectConfig(_Model):
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    classes: tuple[ClassConfig, ...] = ()
    aliases: dict[str, str] = Field(default_factory=dict)
    dataset: str | None = None
    splits: SplitConfig = SplitConfig()
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _unique(self) -> ProjectConfig:
        for what, names in (("source", [s.name for s in self.sources]), ("class", [c.name for c in self.classes])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} name '{twice[0]}' stands twice; names must differ")
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
        """Unique per checkout, unless `dataset = "..."` names one that several machines share."""
        return self.config.dataset or f"{self.name}-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"

    @property
    def class_names(self) -> list[str]:
        return [c.name for c in self.config.classes]

    @cached_property
    def colors(self) -> dict[str, str]:
        return {c.name: c.color or PALETTE[i % len(PALETTE)] for i, c in enumerate(self.config.classes)}

    def source(self, name: str) -> SourceConfig:
        for source in self.config.sources:
            if source.name == name:
                return source
        raise unknown("source", name, [s.name for s in self.config.sources], f"See {self.file}")

    def root(self, source: SourceConfig) -> Path:
        return self._absolute(source.data)

    def labels(self, source: SourceConfig) -> Path | None:
        return self._absolute(source.labels) if source.labels else None

    def locate(self, reference: str) -> Path:
        """The file behind a stored `source:path` reference."""
        name, _, path = reference.partition(":")
        return paths.safe_join(self.root(self.source(name)), path)

    def _absolute(self, path: Path) -> Path:
        return Path(os.path.normpath(self.folder / path.expanduser()))


def parse_ratio(text: str) -> tuple[float, float, float]:
    """`70/15/15` as three shares that add up to one."""
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        raise CurateError(f"split '{text}' is not three numbers; write train/val/test, for example 70/15/15") from None
    total = train + val + test
    if not (min(train, val, test) >= 0 and train > 0 and total < float("inf")):
        raise CurateError(f"split '{text}' needs a train share above 0 and none below 0, for example 70/15/15")
    return train / total, val / total, test / total


def load(folder: Path, overrides: Mapping[str, Any] | None = None) -> Project:
    """The project in `folder`; `overrides` ({"splits": {"ratio": ...}}) are the command line's flags."""
    file = folder / FILE
    try:
        text = file.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise CurateError(f"no project at {folder}: {FILE} is missing. Make one with: curate init") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CurateError(f"{file}: not valid TOML: {error}") from None
    return Project(folder.resolve(), _validate(_merged(values, overrides or {}), file, text))


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merged(base.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


def _validate(values: dict[str, Any], file: Path, text: str) -> ProjectConfig:
    try:
        return ProjectConfig.model_validate(values)
    except ValidationError as error:
        raise CurateError(_explain(error, file, text)) from None


def _explain(error: ValidationError, file: Path, text: str) -> str:
    first = error.errors()[0]
    names = [str(part) for part in first["loc"] if isinstance(part, str)]
    where = f"{file}:{_line_of(names, text)}"
    if first["type"] == "extra_forbidden":
        known = _known_keys(names[:-1])
        return f"{where}: unknown key '{names[-1]}'{nearest(names[-1], known)}; allowed: {', '.join(known)}"
    value = first.get("input")
    shown = f" (it is {value!r})" if isinstance(value, str | int | float | bool) else ""
    return f"{where}: {'.'.join(names) or 'project'}: {first['msg'].removeprefix('Value error, ')}{shown}"


def _known_keys(trail: list[str]) -> list[str]:
    models: dict[str, type[_Model]] = {
        "sources": SourceConfig,
        "classes": ClassConfig,
        "splits": SplitConfig,
        "limits": LimitsConfig,
    }
    model = models.get(trail[0], ProjectConfig) if trail else ProjectConfig
    return sorted(model.model_fields)


def _line_of(names: list[str], text: str) -> int:
    """The line where the last named key (or else its table) stands: TOML readers keep no positions."""
    for name in reversed(names):
        pattern = re.compile(rf"^\s*(?:\[+.*)?[\"']?{re.escape(name)}[\"']?\s*(?:=|\])")
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.match(line):
                return number
    return 1


# --- which project a command means ---------------------------------------------------------------------------------


def find(wanted: str | None = None, start: Path | None = None) -> Path:
    """The folder of the project: `--project`, else CURATE_PROJECT, else where you stand, else the only one."""
    here = (start or Path.cwd()).resolve()
    wanted = wanted or os.environ.get(ENV_PROJECT) or None
    if wanted:
        return _named(wanted, here)
    for folder in (here, *here.parents):
        if (folder / FILE).is_file():
            return folder
    return _only(known(here), here)


def known(here: Path) -> dict[str, Path]:
    """All projects below the nearest `projects/` folder at or above `here`."""
    home = home_of(here)
    return {file.parent.name: file.parent for file in sorted(home.glob(f"*/{FILE}"))}


def home_of(here: Path) -> Path:
    for folder in (here, *here.parents):
        if (folder / "projects").is_dir():
            return folder / "projects"
    return here / "projects"


def _named(wanted: str, here: Path) -> Path:
    path = Path(wanted).expanduser()
    path = path.parent if path.name == FILE else path
    if (here / path / FILE).is_file():
        return (here / path).resolve()
    projects = known(here)
    if wanted in projects:
        return projects[wanted]
    raise unknown("project", wanted, projects, "Give a name, or the folder that holds project.toml")


def _only(projects: Mapping[str, Path], here: Path) -> Path:
    if len(projects) == 1:
        return next(iter(projects.values()))
    if not projects:
        raise CurateError(f"no project found at or below {here}. Make one: curate init NAME --format FORMAT --data DIR")
    names = ", ".join(sorted(projects))
    raise CurateError(f"several projects: {names}. Say which: --project NAME (or set {ENV_PROJECT})")
