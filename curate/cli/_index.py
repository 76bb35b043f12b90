"""`index`, `status`, `resolve`: the way from folders to a dataset that can be trusted."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from curate.cli._common import JsonOption, ProjectOption, bars, emit, open_project, say, table, warn
from curate.errors import CurateError


def register(app: typer.Typer) -> None:
    for command in (index, status, resolve):
        app.command()(command)


def index(
    project: ProjectOption = None,
    split: Annotated[str | None, typer.Option(help="Shares of train/val/test for new groups, as 70/15/15.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Also draw repeated grouped cross-validation folds.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often the folds are drawn anew.")] = 3,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when anything was quarantined.")] = False,
    reread: Annotated[bool, typer.Option("--reread", help="Read every file again, also unchanged ones.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Write every label again from the label log.")] = False,
    json: JsonOption = False,
) -> None:
    """Bring the index up to date with the images and label files. Safe to repeat, safe to kill."""
    from curate import browse, indexing
    from curate.files import writer_lock

    made = open_project(project, {"splits": {"ratio": split}} if split else None)
    with writer_lock(made.work, "curate index"), bars() as step:
        report = indexing.run(made, step, reread=reread, rebuild=rebuild)
        drawn = indexing.draw_folds(made, folds, repeats) if folds else 0
        browse.arrange(made)
    result = report.to_json() | ({"folds": folds, "repeats": repeats, "groups_in_folds": drawn} if folds else {})
    emit(result) if json else _show(result, made.work)
    if strict and report.quarantined:
        raise CurateError(f"{report.quarantined} files are quarantined; see {made.work / 'quarantine.csv'}")


def _show(result: dict[str, Any], work: Any) -> None:
    parts = ("added", "updated", "unchanged", "quarantined", "missing")
    say(" / ".join(f"{name} {result[name]}" for name in parts))
    for name, meaning in (
        ("app_edits", "labels edited in the App were put into the label log"),
        ("kept", "labels changed in the source, but a person's label was kept"),
        ("duplicates", "further copies of an image share one sample"),
        ("conflicts", "images have copies with different labels: disputed until somebody decides (curate resolve)"),
        ("quarantined", f"files cannot be trusted: {work / 'quarantine.csv'}"),
        ("missing", f"files are named or known but not on disk: {work / 'missing.csv'}"),
    ):
        if result[name]:
            say(f"  {result[name]} {meaning}")
    for note, count in result["notes"].items():
        say(f"  note: {count} x {note}")
    for leak in result["leaks"]:
        warn(f"leak: {leak['joined']} is {leak['kept']}; it moved from {leak['moved_from']} to {leak['moved_to']}")
    if result["few_groups"] and "folds" not in result:
        few = ", ".join(f"{name} ({n})" for name, n in result["few_groups"].items())
        say(f"  few groups: {few}. One split says little about them; try: curate index --folds 5")


def status(context: typer.Context, project: ProjectOption = None, json: JsonOption = False) -> None:
    """What the index holds, and what to run next."""
    from curate import status as state

    made = open_project(project)
    summary = state.summarise(made)
    if json:
        emit(summary)
        return
    say(f"[bold]{made.name}[/] {summary['samples']} images")
    for name in ("by_source", "by_split", "by_status", "by_class"):
        rows = [(key, count) for key, count in summary[name].items()]
        if rows:
            table(name.replace("_", " "), ["", "images"], rows)
    counts = ("quarantined", "missing", "duplicates", "conflicts")
    say(", ".join(f"{name} {summary[name]}" for name in counts))
    root: Any = context.find_root().command
    say(f"[bold]next:[/] {state.next_step(summary, root.commands)}")


def resolve(
    image: Annotated[
        str | None, typer.Argument(help="Content id (its first characters will do); all if left out.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="The version to keep: its path, or 'first', 'clean', 'union'.")
    ] = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """List images whose copies have different labels, or decide which version holds."""
    from curate import decisions

    made = open_project(project)
    found = decisions.conflicts(made, image) if keep is None else decisions.resolve(made, image, keep)
    if json:
        emit({"resolved" if keep else "conflicts": found})
        return
    for conflict in found:
        say(f"[bold]{conflict['id'][:12]}[/]" + (f" -> {conflict['kept']}" if keep else ""))
        for version in conflict["versions"]:
            say(f"    {version}")
    if not found:
        say("no conflicts")
    elif keep is None:
        say("decide: curate resolve ID --keep PATH (or first, clean, union), or edit the label in the App")
