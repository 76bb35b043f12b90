"""The models of a project: `work/models/<key>/` (weights.safetensors, manifest.json), moved into place when finished.

`candidate.json` and `production.json` name the model that was trained last and the one in use, with those before it;
what they name is never swept away. A model in the making lies in `.<key>.training/`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curate import __version__, files
from curate.errors import CurateError, unknown
from curate.project import Project

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
CANDIDATE, PRODUCTION = "candidate", "production"
NONE_YET = "this project has no trained model yet. Train one first: curate train"
NUMBER = (int, float)
FIELDS: dict[str, Any] = {  # of a manifest, and what each must be
    **dict.fromkeys(("key", "task", "made"), str),
    **dict.fromkeys(("classes", "outputs", "history"), list),
    **dict.fromkeys(("recipe", "skipped"), dict),
    "data": {"train": int, "val": int, "by_class": dict},
    "best": {"epoch": int, "train_loss": NUMBER},
    "images": {"train": list, "val": list},
    "single": bool,
    "seconds": NUMBER,
}
MOST = 1 << 28  # bytes of a manifest, which names every image
BEFORE = 10  # earlier models that an alias remembers, to go back to


@dataclass(frozen=True)
class StoredModel:
    """A finished model."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def weights(self) -> Path:
        """Its weights; an archive brings manifests back without them."""
        file = self.folder / WEIGHTS
        if not file.is_file():
            raise CurateError(
                f"the weights of model {self.key} are not in {self.folder}: copy them there, or train again"
            )
        return file


def home(project: Project) -> Path:
    return project.work / "models"


def training_folder(project: Project, key: str) -> Path:
    """Where a model is made; it outlives a kill."""
    return home(project) / f".{key}.training"


def opened(folder: Path) -> StoredModel:
    """The model in this folder; raises CurateError where its manifest is not what `finish` writes."""
    file = folder / MANIFEST
    made = _read(file)
    if wrong := next(_wrong(made, FIELDS), None):
        raise _damaged(file, f"{wrong} is missing or of the wrong kind")
    if made["key"] != folder.name:  # paths are made of it
        raise _damaged(file, f"it says that it is of model {str(made['key'])[:40]!r}")
    if not made["classes"] or made["outputs"][: len(made["classes"])] != made["classes"]:
        raise _damaged(file, "its classes are not the outputs that it names")
    if not all(isinstance(name, str) for name in made["outputs"]):
        raise _damaged(file, "a class is no text")
    return StoredModel(folder, made)


def _wrong(made: dict[str, Any], fields: dict[str, Any]) -> Iterator[str]:
    for name, kind in fields.items():
        value = made.get(name)
        if not isinstance(value, dict if isinstance(kind, dict) else kind):
            yield name
        elif isinstance(kind, dict):
            yield from (f"{name}.{inner}" for inner in _wrong(value, kind))


def every(project: Project) -> list[StoredModel]:
    """All finished models, the newest first."""
    found = [opened(file.parent) for file in home(project).glob(f"[!.]*/{MANIFEST}")]
    return sorted(found, key=lambda one: (str(one.manifest.get("made")), one.key), reverse=True)


def find(project: Project, wanted: str | None = None) -> StoredModel:
    """The model of this key (its first characters will do) or alias, else the current one."""
    models = {one.key: one for one in every(project)}
    if not models:
        raise CurateError(NONE_YET)
    name = wanted or current(project)
    if name in (CANDIDATE, PRODUCTION):
        name = alias(project, name) or name
    fitting = [key for key in models if name and key.startswith(name)]
    if len(fitting) == 1:
        return models[fitting[0]]
    if fitting:
        raise CurateError(f"'{name}' fits {len(fitting)} models: {', '.join(fitting)}; give more of its characters")
    raise unknown("model", str(name), [*models, CANDIDATE, PRODUCTION], "See: curate models")


def current(project: Project) -> str | None:
    """The key of production's model, else the candidate, else the newest; None where nothing is trained."""
    models = [one.key for one in every(project)]
    named = (alias(project, name) for name in (PRODUCTION, CANDIDATE))
    return next((key for key in (*named, *models) if key in models), None)


def is_done(project: Project, key: str) -> bool:
    folder = home(project) / key
    return (folder / MANIFEST).is_file() and (folder / WEIGHTS).is_file()


def finish(project: Project, key: str, weights: Path, manifest: dict[str, Any]) -> StoredModel:
    """Put a model in its place, whole, and sweep up where it was made."""
    target = home(project) / key
    files.remove(target)
    versions = {name: version(name) for name in ("torch", "segmentation-models-pytorch", "albumentations", "numpy")}
    about = {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "versions": versions | {"curate": __version__}}
    with files.written_aside(target) as aside:
        aside.mkdir()
        shutil.copyfile(weights, aside / WEIGHTS)
        files.write_json(aside / MANIFEST, {"key": key} | manifest | about)
    files.remove(training_folder(project, key))
    return StoredModel(target, _read(target / MANIFEST))


# --- aliases --------------------------------------------------------------------------------------------------------


def alias(project: Project, name: str) -> str | None:
    found = _alias(project, name).get("model")
    return str(found) if found else None


def point(project: Project, name: str, key: str, **about: str) -> None:
    """Let an alias name this model, and remember the one before; `about` stands beside it."""
    known = _alias(project, name)
    if known.get("model") == key:
        return
    before = [one for one in (known.get("model"), *known.get("before", [])) if one and one != key]
    files.write_json(home(project) / f"{name}.json", {"model": key, "before": before[:BEFORE], **about})


def rollback(project: Project) -> str:
    """Production's model before this one; those that are no longer there are passed over."""
    known = _alias(project, PRODUCTION)
    before = [key for key in known.get("before", []) if is_done(project, key)]
    if not before:
        raise CurateError("production has no earlier model to go back to. See: curate models")
    files.write_json(home(project) / f"{PRODUCTION}.json", {"model": before[0], "before": before[1:]})
    return str(before[0])


def _alias(project: Project, name: str) -> dict[str, Any]:
    file = home(project) / f"{name}.json"
    return _read(file) if file.is_file() else {}


def _read(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file() or file.stat().st_size > MOST:
            raise ValueError("no file, or too large a one")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _damaged(file, "it holds no JSON object")
    return found


def _damaged(file: Path, why: str) -> CurateError:
    what = file.parent if file.name == MANIFEST else file
    return CurateError(f"{file} is damaged ({why}); restore it (curate restore), or remove {what}")
