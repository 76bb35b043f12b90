"""`index`, `status`, `resolve`: the way from folders to a dataset that can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from curate.cli._common import JsonOption, ProjectOption, bars, colored, emit, near, open_project, rows, say, warn
from curate.errors import CurateError

SPLIT_HELP = (
    "Shares of train/val/test for groups that have none yet, as 70/15/15. Holds for this run only; "
    r"to keep it, write ratio under \[splits] in project.toml."
)

COUNTED = {"quarantine": "quarantined", "missing": "missing"}  # the lists of `work/`, and what the summary counts


def register(app: typer.Typer) -> None:
    for command in (index, status, resolve):
        app.command()(command)


def index(
    project: ProjectOption = None,
    split: Annotated[str | None, typer.Option(help=SPLIT_HELP)] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Also draw this many cross-validation folds, grouped.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="With --folds: how often they are drawn anew.")] = 3,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 when anything was quarantined.")] = False,
    reread: Annotated[bool, typer.Option("--reread", help="Read every file again, not only changed ones.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Write every label again from the label log.")] = False,
    json: JsonOption = False,
) -> None:
    """Bring the index up to date with the images and label files. Safe to repeat, safe to kill."""
    from curate.ops import index as indexing

    opened = open_project(project, {"splits": {"ratio": split}} if split else None)
    with bars() as step:
        report, drawn = indexing.run(opened, step, reread=reread, rebuild=rebuild, folds=folds, repeats=repeats)
    result = report.to_json() | ({"folds": folds, "repeats": repeats, "groups_in_folds": drawn} if folds else {})
    if json:
        emit(result)
    else:
        _show(result, opened.work)
        say(f"curate status --project {opened.name}", "next:")
    if strict and report.quarantined:
        raise CurateError(f"{report.quarantined} files are quarantined; see {opened.work / 'quarantine.csv'}")


def _show(result: dict[str, Any], work: Path) -> None:
    parts = ("added", "updated", "unchanged", "quarantined", "missing")
    say(" / ".join(f"{name} {result[name]}" for name in parts))
    lines = [(name.replace("_", " "), result[name], text) for name, text in _meanings(work) if result[name]]
    lines += [("note", count, note) for note, count in result["notes"].items()]
    if result["few_groups"] and "folds" not in result:
        few = ", ".join(f"{name} {n}" for name, n in result["few_groups"].items())
        text = f"classes seen in few groups ({few}): one split says little of them; cross-validate with --folds 5"
        lines.append(("few groups", len(result["few_groups"]), text))
    if "folds" in result:
        drawn = f"drawn {result['repeats']} times over {result['groups_in_folds']} groups, in the field folds"
        lines.append(("folds", result["folds"], drawn))
    rows([("", *line) for line in lines], right={2})
    for leak in result["leaks"]:
        warn(f"leak: {leak['joined']} is {leak['kept']}; it moved from {leak['moved_from']} to {leak['moved_to']}")


def _meanings(work: Path) -> tuple[tuple[str, str], ...]:
    return (
        ("app_edits", "labels edited in the App, now in the label log"),
        ("kept", "labels changed in the source; a person's label was kept"),
        ("duplicates", "further copies of an image, which share its sample"),
        ("conflicts", "copies with different labels, disputed until decided: curate resolve"),
        ("quarantined", f"cannot be trusted, see {near(work / 'quarantine.csv')}"),
        ("missing", f"named or known, but not on disk, see {near(work / 'missing.csv')}"),
    )


def status(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Show what the index holds, and what to run next."""
    from curate.admin import status as state

    opened = open_project(project)
    summary = state.summarise(opened)
    if json:
        emit(summary)
        return
    _overview(summary)
    if lists := [near(opened.work / f"{what}.csv") for what in ("quarantine", "missing") if summary[COUNTED[what]]]:
        say(f"left out, and why: {', '.join(lists)}")
        say()
    rows([(colored(name, opened.colors.get(name)), n) for name, n in summary["by_class"].items()], right={1})
    if not summary["by_class"].keys() - {"clean", "(clean)"}:
        say("no classes yet")
    say()
    for lead, step in zip(("next:", "or:  "), summary["next"], strict=False):
        say(f"{step['command']}  ({step['why']})", lead)


def _overview(summary: dict[str, Any]) -> None:
    """The numbers of `curate status`, but for the classes, on one line a noun."""
    nouns = {name: summary[f"by_{name}"] for name in ("source", "split", "status")}
    nouns["files"] = {name: summary[name] for name in ("quarantined", "missing", "duplicates", "conflicts")}
    say(f"{summary['samples']} images", summary["project"])
    say()
    rows((noun, ", ".join(f"{name} {n}" for name, n in counts.items())) for noun, counts in nouns.items())
    say()


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
    from curate.index import conflicts

    opened = open_project(project)
    listed = conflicts.conflicts(opened, image) if keep is None else conflicts.resolve(opened, image, keep)
    if json:
        emit({"resolved" if keep else "conflicts": listed})
        return
    for conflict in listed:
        say(f"-> {conflict['kept']}" if keep else "", conflict["id"][:12])
        for number, version in enumerate(conflict["versions"], start=1):
            say(f"    {number}: {version}")
        _differences(conflict)
    if not listed:
        say("no conflicts")
    elif keep is None:
        if "differences" not in listed[-1]:
            say("of the others, curate resolve ID shows how the versions differ")
        say("decide: curate resolve ID --keep PATH (or first, clean, union), or edit the label in the App")


def _differences(conflict: dict[str, Any]) -> None:
    """A line a class: the versions' regions and areas, in their order, and how far these overlap."""
    lines = []
    for name, difference in conflict.get("differences", {}).items():
        regions = " / ".join(
            str(count) if count or not shown else "whole image"
            for count, shown in zip(difference["regions"], difference["shown"], strict=True)
        )
        areas = " / ".join(f"{area:,}" for area in difference["area"])
        lines.append(("   ", name, regions, areas, "-" if difference["iou"] is None else f"{difference['iou']:.2f}"))
        if any(difference["severity"]):
            severities = " / ".join(", ".join(names) or "-" for names in difference["severity"])
            lines.append(("   ", "", "severity", severities, ""))
    if lines:
        rows([("   ", "class", "regions", "area (pixels)", "IoU"), *lines])
    if conflict.get("picture"):
        say(f"    picture: {near(Path(conflict['picture']))}")
