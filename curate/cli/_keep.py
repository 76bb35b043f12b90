"""`backup`, `restore`, `classes`, `gc`: nothing is lost, and nothing superseded stays for ever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from curate.cli._common import (
    JsonOption,
    ProjectOption,
    YesOption,
    colored,
    confirm,
    emit,
    open_project,
    rows,
    say,
    warn,
)

_classes = typer.Typer(help="List, rename, merge, add or retire classes: in config, label log and index, in one step.")


def register(app: typer.Typer) -> None:
    app.command()(backup)
    app.command()(restore)
    app.add_typer(_classes, name="classes")
    app.command()(gc)


def backup(
    file: Annotated[Path, typer.Argument(help="The archive to write (.tar.gz).")],
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Write labels, index, rounds, models' manifests and config to one archive. Images stay where they are."""
    from curate.admin import backup as archive

    report = archive.backup(open_project(project), file)
    emit(report) if json else say(f"{file}: {report['samples']} images, {report['files']} files", "wrote", "green")


def restore(
    file: Annotated[Path, typer.Argument(help="An archive made by curate backup.")],
    to: Annotated[Path | None, typer.Option(help="The project's folder \\[default: projects/NAME].")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Where a source's images lie now, as source=FOLDER.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a project that is there (it is set aside).")] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Use the folders that the archive names without asking.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Bring a project back from an archive."""
    import sys

    from curate.admin import backup as archive

    def ask(named: Sequence[str]) -> bool:
        if json or not sys.stdin.isatty():
            return False
        for line in named:
            warn(line)
        return typer.confirm("The archive names these, outside the project. Use them?", err=True)

    report = archive.restore(file, to, dict(_pair(text) for text in data or []), force, trust, ask)
    for name in report["unreachable"]:
        warn(f"the images of source '{name}' are not on this machine; restore with --data {name}=FOLDER, or mount them")
    emit(report) if json else say(f"{report['samples']} images to {report['project']}", "restored", "green")


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise typer.BadParameter(f"'{text}' is not source=FOLDER")
    return name, value


@_classes.command("list")
def classes_list(project: ProjectOption = None, json: JsonOption = False) -> None:
    """The project's classes, their colours and how many images show them."""
    from curate.index import classes

    entries = classes.listing(open_project(project))
    if json:
        emit({"classes": entries})
        return
    cells = [
        (colored(c["name"], c["color"]), c["images"], c["color"], "retired" if c["retired"] else "") for c in entries
    ]
    rows(cells, right={1})
    if not entries:
        say("no classes yet: curate classes add NAME")


@_classes.command("rename")
def classes_rename(
    old: Annotated[str, typer.Argument(help="The class's name now.")],
    new: Annotated[str, typer.Argument(help="Its new name, which no class has yet.")],
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Give a class another name."""
    from curate.index import classes

    _done(classes.rename(open_project(project), old, new), json)


@_classes.command("merge")
def classes_merge(
    names: Annotated[list[str], typer.Argument(help="The classes to merge.")],
    into: Annotated[str, typer.Option(help="The class that takes them in; it exists, or is one of them.")],
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Make several classes one."""
    from curate.index import classes

    _done(classes.merge(open_project(project), names, into), json)


@_classes.command("add")
def classes_add(
    name: Annotated[str, typer.Argument(help="The new class's name.")],
    color: Annotated[str | None, typer.Option(help="As #rrggbb \\[default: the next of the palette].")] = None,
    description: Annotated[str, typer.Option(help="What it looks like, for those who label.", show_default=False)] = "",
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Add a class."""
    from curate.index import classes

    _done(classes.add(open_project(project), name, color, description), json)


@_classes.command("retire")
def classes_retire(
    name: Annotated[str, typer.Argument(help="The class that is no longer offered.")],
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Offer a class no longer; its labels stay, so that no defect turns into a clean image."""
    from curate.index import classes

    _done(classes.retire(open_project(project), name), json)


def _done(report: dict[str, object], json: bool) -> None:
    emit(report) if json else say(f"({report['images']} images changed)", str(report["did"]), "green")


def gc(
    project: ProjectOption = None,
    yes: YesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove superseded vectors, scores, rounds, models and left-over parts; lists them first. Labels always stay."""
    from curate.admin import gc as garbage
    from curate.files import writer_lock

    opened = open_project(project)
    with writer_lock(opened.work, "curate gc"):
        superseded = garbage.find(opened)
        size = sum(item.bytes for item in superseded)
        if not json:
            for item in superseded:
                say(f"{item.bytes / 1e6:9.1f} MB  {item.path.relative_to(opened.work)}  ({item.why})")
            say(f"{len(superseded)} superseded, {size / 1e6:.1f} MB" if superseded else "nothing to remove")
        removed = bool(superseded) and not dry_run and (yes or not json)  # with --json nothing goes without --yes
        left: list[str] = []
        if removed:
            confirm("remove them?", yes)
            gone = garbage.remove(opened, superseded)
            left = [str(item.path) for item in superseded if item not in gone]
        if left:
            warn(f"{len(left)} were left: a command has begun to work there")
    if json:
        listed = [{"path": str(i.path), "bytes": i.bytes, "why": i.why} for i in superseded]
        emit({"found": listed, "bytes": size, "removed": removed, "left": left})
