"""`curate classes`: config, label log and index change in one step.

A change is written down first (`work/classes.json`), then made in the log, the config and the index. What a kill cut
short, the next `curate index` or `curate classes` finishes; the same command again says that it is done.
"""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomlkit

from curate import files, state
from curate.errors import CurateError, unknown
from curate.files import writer_lock
from curate.index import app_edits, app_views
from curate.index.dataset import Index
from curate.labels.log import LabelLog, user_name
from curate.project import FILE, PALETTE, Project, load

PENDING = "classes.json"


def listing(project: Project) -> list[dict[str, Any]]:
    """Return every class with its colour and its number of images."""
    counts = Counter(name for member in Index(project).members().values() for name in member.classes)
    return [
        {"name": c.name, "color": project.colors[c.name], "images": counts[c.name], "retired": c.retired}
        for c in project.config.classes
    ]


def rename(project: Project, old: str, new: str) -> dict[str, Any]:
    """Give a class another name, in config, log and index."""

    def check(names: Sequence[str]) -> None:
        _require_class(names, old)
        if new in names:
            raise CurateError(f"class '{new}' exists already; to join them: curate classes merge {old} --into {new}")

    return _rename_classes(project, {old: new}, f"renamed {old} to {new}", check)


def merge(project: Project, names: Sequence[str], into: str) -> dict[str, Any]:
    """Make several classes one, in config, log and index."""
    moves = {name: into for name in names if name != into}

    def check(known: Sequence[str]) -> None:
        for name in (*names, into):
            _require_class(known, name)
        if not moves:
            raise CurateError(f"nothing to merge: '{into}' is the only class named")

    return _rename_classes(project, moves, f"merged {', '.join(moves)} into {into}", check)


def add(project: Project, name: str, color: str | None = None, description: str = "") -> dict[str, Any]:
    """Add a class, or offer a retired one again. An existing class stays as it is."""
    if color and not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
        raise CurateError(f"--color '{color}' is not a colour; allowed: #rrggbb, for example {PALETTE[0]}")
    if name != name.strip() or not name.isprintable() or not name:
        raise CurateError(f"class name {name!r}: allowed is printable text without a space at either end")
    existing = next((entry for entry in project.config.classes if entry.name == name), None)
    if existing is not None:
        if color not in (None, existing.color) or description not in ("", existing.description):
            raise CurateError(f"class '{name}' exists already, with other values; change them in {project.file}")
        if existing.retired:
            done = f"class {name} is offered again"
            return _record_change(project, lambda document: _entry(document, name).pop("retired"), "add", name, done)
        return _record_change(
            project, None, "add", name, f"class {name} exists already, with colour {project.colors[name]}"
        )

    def change(document: Any) -> None:
        entry = tomlkit.table()
        entry["name"] = name
        entry["color"] = color or PALETTE[len(project.class_names) % len(PALETTE)]
        if description:
            entry["description"] = description
        document.setdefault("classes", tomlkit.aot()).append(entry)

    return _record_change(project, change, "add", name, f"added {name}")


def retire(project: Project, name: str) -> dict[str, Any]:
    """Stop offering a class to annotators and models; labels keep it."""
    _require_class(project.class_names, name)
    if name not in project.active_classes:
        return _record_change(project, None, "retire", name, f"class {name} is retired already")

    def change(document: Any) -> None:
        _entry(document, name)["retired"] = True

    return _record_change(project, change, "retire", name, f"retired {name}")


def _entry(document: Any, name: str) -> Any:
    return next(entry for entry in document["classes"] if entry["name"] == name)


def _record_change(
    project: Project, change: Callable[[Any], None] | None, event: str, name: str, did: str
) -> dict[str, Any]:
    """Make a change that touches no label in the log, the config and the App; without one, only refresh the App."""
    with writer_lock(project.work, "curate classes"):
        state.require(project)
        if change is not None:
            text = _changed_config(project, change)
            log = LabelLog(project.work / "labels")
            log.note(event, name, user_name())
            log.close()
            files.write_text(project.file, text)
    if "dataset" in state.recorded(project):  # classes may be made before the first image is indexed
        app_views.arrange(load(project.folder))
    return {"did": did, "images": 0}


def _require_class(names: Sequence[str], name: str) -> None:
    if name not in names:
        raise unknown("class", name, names)


def _rename_classes(
    project: Project, moves: dict[str, str], did: str, check: Callable[[Sequence[str]], None]
) -> dict[str, Any]:
    """Plan the change, check that the config can take it, write the plan down, and carry it out.

    If an earlier run was killed after the work was done, this only refreshes the App.
    """
    with writer_lock(project.work, "curate classes"):
        index = Index(project)
        finish_pending(index)
        project = index.project = load(project.folder)
        done = bool(moves) and _is_done(project, moves)
        changed = 0
        if not done:
            check(project.class_names)
            _changed_config(project, lambda document: _rename_entries(document, moves))
            plan = {"change": uuid.uuid4().hex, "moves": moves, "did": did}
            files.write_json(project.work / PENDING, plan)
            before = {id: image.key for id, image in index.image_states().items()}
            index.project = finish_pending(index)
            changed = sum(image.key != before[id] for id, image in index.image_states().items())
    app_views.arrange(index.project)
    return {"did": f"{did} before" if done else did, "images": changed}


def _is_done(project: Project, moves: dict[str, str]) -> bool:
    names, aliases = project.class_names, project.config.aliases
    return all(old not in names and new in names and aliases.get(old) == new for old, new in moves.items())


def finish_pending(index: Index) -> Project:
    """Carry out a planned change of classes, such as one that a kill cut short. The caller holds the lock."""
    project, pending = index.project, index.project.work / PENDING
    if not pending.exists():
        return project
    plan = _plan(pending)
    log = LabelLog(project.work / "labels")
    app_edits.capture(index, log, {*project.class_names, *plan["moves"].values()})
    log.rename(plan["moves"], user_name(), plan["did"], plan["change"])
    files.write_text(project.file, _changed_config(project, lambda document: _rename_entries(document, plan["moves"])))
    config = load(project.folder).config
    current = {"classes": config.classes, "aliases": config.aliases}
    project = replace(project, config=project.config.model_copy(update=current))
    log.allow(project.class_names)
    outdated = [id for id, image in index.image_states().items() if image.key != log.key(id)]
    app_edits.show(index, log, outdated, project.class_names)
    log.close()
    pending.unlink()
    return project


def _plan(file: Path) -> dict[str, Any]:
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
        texts = (plan["did"], plan["change"], *plan["moves"], *plan["moves"].values())
        if all(isinstance(text, str) for text in texts):
            return {"did": plan["did"], "change": plan["change"], "moves": dict(plan["moves"])}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise CurateError(f"{file} is damaged: which classes were to change is unknown. Remove it, then change them")


def _rename_entries(document: Any, moves: dict[str, str]) -> None:
    """Drop or rename the class entries, and keep the old names as aliases, so that label files stay readable."""
    for entry in [e for e in document["classes"] if e["name"] in moves]:
        new = moves[entry["name"]]
        if any(other["name"] == new for other in document["classes"]):
            document["classes"].remove(entry)
        else:
            entry["name"] = new
    aliases = document.setdefault("aliases", tomlkit.table())
    for old, new in list(aliases.items()):
        aliases[old] = moves.get(new, new)
    aliases.update(moves)
    for name in [old for old, new in aliases.items() if old == new]:
        del aliases[name]


def _changed_config(project: Project, change: Callable[[Any], None]) -> str:
    """Return the text of project.toml after a change, with its comments. Raises CurateError if it is not valid."""
    document = tomlkit.parse(project.file.read_text(encoding="utf-8"))
    change(document)
    text = tomlkit.dumps(document)
    with tempfile.TemporaryDirectory() as folder:
        files.write_text(Path(folder) / FILE, text)
        load(Path(folder))
    return text
