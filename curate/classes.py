"""`curate classes`: config, label log and index change in one step.

The log is written first, then the config, then the index. A kill in between is mended by repeating the command or by
the next `curate index`, which makes the index follow the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import tomlkit

from curate import browse, edits, files
from curate.errors import CurateError, unknown
from curate.files import writer_lock
from curate.index import Index
from curate.labels import Book, me
from curate.project import PALETTE, Project, load


def listing(project: Project) -> list[dict[str, Any]]:
    shown = Counter(name for member in Index(project).members().values() for name in member.classes)
    return [
        {"name": c.name, "color": project.colors[c.name], "images": shown[c.name], "retired": c.retired}
        for c in project.config.classes
    ]


def rename(project: Project, old: str, new: str) -> dict[str, Any]:
    _known(project, old)
    if new in project.class_names:
        raise CurateError(f"class '{new}' exists already; to join them: curate classes merge {old} --into {new}")
    return _moved(project, {old: new}, f"renamed {old} to {new}")


def merge(project: Project, names: Sequence[str], into: str) -> dict[str, Any]:
    for name in (*names, into):
        _known(project, name)
    moves = {name: into for name in names if name != into}
    if not moves:
        raise CurateError(f"nothing to merge: '{into}' is the only class named")
    return _moved(project, moves, f"merged {', '.join(moves)} into {into}")


def add(project: Project, name: str, color: str | None = None, description: str = "") -> dict[str, Any]:
    if name in project.class_names:
        raise CurateError(f"class '{name}' exists already; allowed: a new name")

    def change(document: Any) -> None:
        entry = tomlkit.table()
        entry["name"] = name
        entry["color"] = color or PALETTE[len(project.class_names) % len(PALETTE)]
        if description:
            entry["description"] = description
        document.setdefault("classes", tomlkit.aot()).append(entry)

    with writer_lock(project.work, "curate classes"):
        _edit(project, change)
    return {"did": f"added {name}", "images": 0}


def retire(project: Project, name: str) -> dict[str, Any]:
    _known(project, name)

    def change(document: Any) -> None:
        next(entry for entry in document["classes"] if entry["name"] == name)["retired"] = True

    with writer_lock(project.work, "curate classes"):
        _edit(project, change)
    return {"did": f"retired {name}", "images": 0}


def _known(project: Project, name: str) -> None:
    if name not in project.class_names:
        raise unknown("class", name, project.class_names)


def _moved(project: Project, moves: dict[str, str], did: str) -> dict[str, Any]:
    with writer_lock(project.work, "curate classes"):
        index, book = Index(project), Book(project.work / "labels")
        edits.capture(index, book, project.class_names)
        book.rename(moves, me(), did)
        book.close()
        changed = _edit(project, lambda document: _move(document, moves))
        stale = [id for id, card in index.cards().items() if card.key != book.key(id)]
        index.show(book, stale)
    browse.arrange(changed)
    return {"did": did, "images": len(stale)}


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


def _edit(project: Project, change: Any) -> Project:
    """Change project.toml and keep its comments; the old file stays unless the new one can be read."""
    before = project.file.read_text(encoding="utf-8")
    document = tomlkit.parse(before)
    change(document)
    files.write_text(project.file, tomlkit.dumps(document))
    try:
        return load(project.folder)
    except CurateError:
        files.write_text(project.file, before)
        raise
