"""The models of a project: `work/models/<key>/` (weights.safetensors, manifest.json), moved into place when finished.

`candidate.json` and `production.json` name the model that was trained last and the one in use, with earlier ones;
`curate gc` never removes a model that they name. A model in training lies in `.<key>.training/`.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from curate import __version__, files
from curate.errors import CurateError, unknown
from curate.project import Project
from train import decisions
from train.decisions import Decision

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
CANDIDATE, PRODUCTION = "candidate", "production"
NONE_YET = "this project has no trained model yet. Train one first: curate train"
NUMBER = (int, float)
FIELDS: dict[str, Any] = {  # of a manifest, with the type of each
    **dict.fromkeys(("key", "task", "made"), str),
    **dict.fromkeys(("classes", "outputs", "history"), list),
    **dict.fromkeys(("recipe", "skipped"), dict),
    "data": {"train": int, "val": int, "by_class": dict},
    "best": {"epoch": int, "train_loss": NUMBER},
    "images": {"train": list, "val": list},
    "single": bool,
    "seconds": NUMBER,
}
LARGEST = 1 << 28  # bytes of a manifest: it lists every image
REMEMBERED = 10  # earlier models that an alias keeps for rollback


@dataclass(frozen=True)
class StoredModel:
    """A finished model."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def decisions(self) -> dict[str, Decision]:
        """The decisions that were fitted, by class."""
        return decisions.from_manifest(self.manifest.get("decisions") or {})

    @property
    def versions(self) -> list[Any]:
        """The part of a result's key that changes with the decisions; empty for a model without any."""
        return [self.manifest["decisions"]] if self.manifest.get("decisions") else []

    @property
    def weights(self) -> Path:
        """The weights file. Raises CurateError where it is missing: archives restore manifests without weights."""
        file = self.folder / WEIGHTS
        if not file.is_file():
            raise CurateError(
                f"the weights of model {self.key} are not in {self.folder}: copy them there, or train again"
            )
        return file


def models_folder(project: Project) -> Path:
    """Return the folder of all models of the project."""
    return project.work / "models"


def training_folder(project: Project, key: str) -> Path:
    """Return the folder in which a model is trained; a killed run resumes from it."""
    return models_folder(project) / f".{key}.training"


def open_model(folder: Path) -> StoredModel:
    """Return the model in this folder. Raises CurateError where its manifest is not as `finish` writes it."""
    file = folder / MANIFEST
    manifest = _read(file)
    if wrong := next(_wrong_fields(manifest, FIELDS), None):
        raise _damaged(file, f"{wrong} is missing or of the wrong kind")
    if manifest["key"] != folder.name:  # paths are built from it
        raise _damaged(file, f"it belongs to model {str(manifest['key'])[:40]!r}")
    if not manifest["classes"] or manifest["outputs"][: len(manifest["classes"])] != manifest["classes"]:
        raise _damaged(file, "its classes are not the first of its outputs")
    if not all(isinstance(name, str) for name in manifest["outputs"]):
        raise _damaged(file, "a class name is not text")
    try:
        decisions.from_manifest(manifest.get("decisions") or {})
    except (ValueError, AttributeError) as error:
        raise _damaged(file, f"decisions: {error}") from None
    return StoredModel(folder, manifest)


def _wrong_fields(manifest: dict[str, Any], fields: dict[str, Any]) -> Iterator[str]:
    for name, kind in fields.items():
        value = manifest.get(name)
        if not isinstance(value, dict if isinstance(kind, dict) else kind):
            yield name
        elif isinstance(kind, dict):
            yield from (f"{name}.{inner}" for inner in _wrong_fields(value, kind))


def all_models(project: Project) -> list[StoredModel]:
    """Return all finished models, the newest first."""
    models = [open_model(file.parent) for file in models_folder(project).glob(f"[!.]*/{MANIFEST}")]
    return sorted(models, key=lambda model: (str(model.manifest.get("made")), model.key), reverse=True)


def find(project: Project, name_or_key: str | None = None) -> StoredModel:
    """Return a model: by key (its first characters suffice) or alias, without either the current one."""
    models = {model.key: model for model in all_models(project)}
    if not models:
        raise CurateError(NONE_YET)
    name = name_or_key or current(project)
    if name in (CANDIDATE, PRODUCTION):
        name = alias(project, name) or name
    fitting = [key for key in models if name and key.startswith(name)]
    if len(fitting) == 1:
        return models[fitting[0]]
    if fitting:
        raise CurateError(f"'{name}' matches {len(fitting)} models: {', '.join(fitting)}; give more of its characters")
    raise unknown("model", str(name), [*models, CANDIDATE, PRODUCTION], "See: curate models")


def current(project: Project) -> str | None:
    """Return the key of the production model, else of the candidate, else of the newest; None without any model."""
    models = [model.key for model in all_models(project)]
    named = (alias(project, name) for name in (PRODUCTION, CANDIDATE))
    return next((key for key in (*named, *models) if key in models), None)


def is_done(project: Project, key: str) -> bool:
    """Return whether the model is trained, with both its manifest and its weights."""
    folder = models_folder(project) / key
    return (folder / MANIFEST).is_file() and (folder / WEIGHTS).is_file()


def finish(project: Project, key: str, weights: Path, manifest: dict[str, Any]) -> StoredModel:
    """Store a trained model in one step, then remove its training folder."""
    target = models_folder(project) / key
    files.remove(target)
    versions = {name: version(name) for name in ("torch", "segmentation-models-pytorch", "albumentations", "numpy")}
    about = {"made": _now(), "versions": versions | {"curate": __version__}}
    with files.written_aside(target) as aside:
        aside.mkdir()
        shutil.copyfile(weights, aside / WEIGHTS)
        files.write_json(aside / MANIFEST, {"key": key} | manifest | about)
    files.remove(training_folder(project, key))
    return StoredModel(target, _read(target / MANIFEST))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def metrics_on_test(project: Project, key: str, names: Collection[str]) -> dict[str, float | None] | None:
    """Return these metrics over all classes of a model's newest evaluation on test, if there is one."""
    manifests = (project.work / "evaluations" / key).glob("test-*/manifest.json")
    newest = max(((str(_read(file).get("made")), file.parent) for file in manifests), default=None)
    if newest is None:
        return None
    overall = _read(newest[1] / "figures.json").get("overall")
    entries = {name: overall.get(name) if isinstance(overall, dict) else None for name in names}
    values = {name: entry.get("value") if isinstance(entry, dict) else None for name, entry in entries.items()}
    return {name: value if isinstance(value, float) else None for name, value in values.items()}


def set_decisions(model: StoredModel, fitted: dict[str, Any]) -> None:
    """Store other decisions with a model."""
    files.write_json(model.folder / MANIFEST, model.manifest | {"decisions": fitted})


# --- aliases --------------------------------------------------------------------------------------------------------


def alias(project: Project, name: str) -> str | None:
    """Return the key of the model that an alias names, if any."""
    key = _read_alias(project, name).get("model")
    return str(key) if key else None


def set_alias(project: Project, name: str, key: str, overruled: str | None = None, why: str | None = None) -> None:
    """Let an alias name this model and keep the earlier ones, with what was overruled for each, and why."""
    content = _read_alias(project, name)
    if content.get("model") == key:
        return
    before = [earlier for earlier in (content.get("model"), *content.get("before", [])) if earlier and earlier != key]
    kept = before[:REMEMBERED]
    forced = {model: entry for model, entry in _forced(content).items() if model in kept}
    if overruled:
        forced[key] = {"overruled": overruled, "why": why, "when": _now()}
    files.write_json(models_folder(project) / f"{name}.json", {"model": key, "before": kept, "forced": forced})


def _forced(content: dict[str, Any]) -> dict[str, Any]:
    """Return what was overruled, by model. (An older curate kept the current model's reason alone.)"""
    forced = content.get("forced") or {}
    return forced if isinstance(forced, dict) else {str(content.get("model")): {"overruled": forced}}


def rollback(project: Project) -> str:
    """Let production name the last earlier model that passed the gate, else the last that exists; return its key."""
    content = _read_alias(project, PRODUCTION)
    forced = _forced(content)
    before = [key for key in content.get("before", []) if is_done(project, key)]
    if not before:
        raise CurateError("production has no earlier model to go back to. See: curate models")
    place = next((place for place, key in enumerate(before) if key not in forced), 0)
    left = {"model": before[place], "before": before[place + 1 :]}
    left["forced"] = {model: entry for model, entry in forced.items() if model in before[place:]}
    files.write_json(models_folder(project) / f"{PRODUCTION}.json", left)
    return str(before[place])


def _read_alias(project: Project, name: str) -> dict[str, Any]:
    """Return the alias's file, in which every model is a plain name: paths are built from it."""
    file = models_folder(project) / f"{name}.json"
    content = _read(file) if file.is_file() else {}
    before = content.get("before", [])
    if not isinstance(before, list) or not isinstance(content.get("forced") or {}, dict | str):
        raise _damaged(file, "before is no list, or forced no object")
    for key in (content.get("model") or "none", *before):
        if not isinstance(key, str) or not re.fullmatch(r"[\w-]{1,100}", key):
            raise _damaged(file, f"{str(key)[:40]!r} is no model")
    return content


def _read(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            raise ValueError("not a file, or too large")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _damaged(file, "not a JSON object")
    return content


def _damaged(file: Path, why: str) -> CurateError:
    what = file.parent if file.name == MANIFEST else file
    return CurateError(f"{file} is damaged ({why}); restore it (curate restore), or remove {what}")
