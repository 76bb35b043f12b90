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
from curate.labels.log import LabelLog, me
from curate.project import FILE, PALETTE, Project, load

PENDING = "classes.json"


def listing(project: Project) -> list[dict[str, Any]]:
    shown = Counter(name for member in Index(project).members().values() for name in member.classes)
    return [
        {"name": c.name, "color": project.colors[c.name], "images": shown[c.name], "retired": c.retired}
        for c in project.config.classes
    ]


def rename(project: Project, old: str, new: str) -> dict[str, Any]:
    def check(names: Sequence[str]) -> None:
        _known(names, old)
        if new in names:
            raise CurateError(f"class '{new}' exists already; to join them: curate classes merge {old} --into {new}")

    return _moved(project, {old: new}, f"renamed {old} to {new}", check)


def merge(project: Project, names: Sequence[str], into: str) -> dict[str, Any]:
    moves = {name: into for name in names if name != into}

    def check(known: Sequence[str]) -> None:
        for name in (*names, into):
            _known(known, name)
        if not moves:
            raise CurateError(f"nothing to merge: '{into}' is the only class named")

    return _moved(project, moves, f"merged {', '.join(moves)} into {into}", check)


def add(project: Project, name: str, color: str | None = None, description: str = "") -> dict[str, Any]:
    """Add a class, or offer a retired one again. One that is there already stays as it is."""
    if color and not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
        raise CurateError(f"--color '{color}' is no colour; allowed: #rrggbb, for example {PALETTE[0]}")
    if name != name.strip() or not name.isprintable() or not name:
        raise CurateError(f"class name {name!r}: allowed is printable text without a space at either end")
    there = next((one for one in project.config.classes if one.name == name), None)
    if there is not None:
        if color not in (None, there.color) or description not in ("", there.description):
            raise CurateError(f"class '{name}' exists already, with other values; change them in {project.file}")
        if there.retired:
            done = f"class {name} is offered again"
            return _noted(project, lambda document: _entry(document, name).pop("retired"), "add", name, done)
        return _noted(project, None, "add", name, f"class {name} is there already, with colour {project.colors[name]}")

    def change(document: Any) -> None:
        entry = tomlkit.table()
        entry["name"] = name
        entry["color"] = color or PALETTE[len(project.class_names) % len(PALETTE)]
        if description:
            entry["description"] = description
        document.setdefault("classes", tomlkit.aot()).append(entry)

    return _noted(project, change, "add", name, f"added {name}")


def retire(project: Project, name: str) -> dict[str, Any]:
    _known(project.class_names, name)
    if name not in project.active_classes:
        return _noted(project, None, "retire", name, f"class {name} is retired already")

    def change(document: Any) -> None:
        _entry(document, name)["retired"] = True

    return _noted(project, change, "retire", name, f"retired {name}")


def _entry(document: Any, name: str) -> Any:
    return next(entry for entry in document["classes"] if entry["name"] == name)


def _noted(project: Project, change: Callable[[Any], None] | None, event: str, name: str, did: str) -> dict[str, Any]:
    """A change that touches no label: in the log, the config, and what the App offers. Without a change, the last."""
    with writer_lock(project.work, "curate classes"):
        state.require(project)
        if change is not None:
            text = _planned(project, change)
            book = LabelLog(project.work / "labels")
            book.note(event, name, me())
            book.close()
            files.write_text(project.file, text)
    if "dataset" in state.recorded(project):  # classes may be made before the first image is indexed
        app_views.arrange(load(project.folder))
    return {"did": did, "images": 0}


def _known(names: Sequence[str], name: str) -> None:
    if name not in names:
        raise unknown("class", name, names)


def _moved(project: Project, moves: dict[str, str], did: str, check: Callable[[Sequence[str]], None]) -> dict[str, Any]:
    """Plan the change, check that the config can take it, write the plan down, and carry it out.

    Where a kill came after the work was done, the same command again only arranges what the App offers.
    """
    with writer_lock(project.work, "curate classes"):
        index = Index(project)
        finish(index)
        project = index.project = load(project.folder)
        done = bool(moves) and _is_done(project, moves)
        changed = 0
        if not done:
            check(project.class_names)
            _planned(project, lambda document: _move(document, moves))
            plan = {"change": uuid.uuid4().hex, "moves": moves, "did": did}
            files.write_json(project.work / PENDING, plan)
            before = {id: card.key for id, card in index.cards().items()}
            index.project = finish(index)
            changed = sum(card.key != before[id] for id, card in index.cards().items())
    app_views.arrange(index.project)
    return {"did": f"{did} before" if done else did, "images": changed}


def _is_done(project: Project, moves: dict[str, str]) -> bool:
    names, aliases = project.class_names, project.config.aliases
    return all(old not in names and new in names and aliases.get(old) == new for old, new in moves.items())


def finish(index: Index) -> Project:
    """Carry out a change of classes that was planned: also one that a kill cut short. The caller holds the lock."""
    project, pending = index.project, index.project.work / PENDING
    if not pending.exists():
        return project
    plan = _plan(pending)
    book = LabelLog(project.work / "labels")
    app_edits.capture(index, book, {*project.class_names, *plan["moves"].values()})
    book.rename(plan["moves"], me(), plan["did"], plan["change"])
    files.write_text(project.file, _planned(project, lambda document: _move(document, plan["moves"])))
    config = load(project.folder).config
    now_known = {"classes": config.classes, "aliases": config.aliases}
    project = replace(project, config=project.config.model_copy(update=now_known))
    book.allow(project.class_names)
    stale = [id for id, card in index.cards().items() if card.key != book.key(id)]
    app_edits.show(index, book, stale, project.class_names)
    book.close()
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
    raise CurateError(f"{file} is damaged: which classes were to change cannot be told. Remove it, then change them")


def _move(document: Any, moves: dict[str, str]) -> None:
    """Drop or rename the class entries, and remember the old names, so that label files keep being understood."""
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


def _planned(project: Project, change: Callable[[Any], None]) -> str:
    """The text of project.toml after a change, its comments kept; raises where it could not be read again."""
    document = tomlkit.parse(project.file.read_text(encoding="utf-8"))
    change(document)
    text = tomlkit.dumps(document)
    with tempfile.TemporaryDirectory() as folder:
        files.write_text(Path(folder) / FILE, text)
        load(Path(folder))
    return text
