"""`duplicates`, `select`: the images that are worth a person's time, each picture once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli._common import (
    JsonOption,
    ProjectOption,
    bars,
    colored,
    emit,
    list_plugins,
    open_project,
    plugins_json,
    rows,
    say,
    warn,
)
from curate.units import duration

if TYPE_CHECKING:
    from curate.project import Project
    from curate.select.run import SelectResult
    from curate.vectors.duplicates import DuplicatesReport


def register(app: typer.Typer) -> None:
    app.command()(duplicates)
    app.command()(select)


def duplicates(
    project: ProjectOption = None,
    near: Annotated[
        float | None,
        typer.Option(min=0, max=1, help=r"Cosine from which images are near-duplicates \[default: by the data]."),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help=r"Whose vectors to use \[default: the newest].")] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Make each cluster one group, for good: no split cuts through it then.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Find pictures that are nearly the same, also across splits and sources; nothing is removed."""
    from curate.ops import duplicates as search

    opened = open_project(project)
    with bars() as step:
        report = search.run(opened, near, encoder, join, step)
    emit(report.to_json()) if json else _clusters(opened, report)


def _clusters(project: Project, report: DuplicatesReport) -> None:
    counts = f"{report.clusters} clusters, {report.duplicates} images nearly equal another one"
    say(f"{counts} (of {report.images}, cosine >= {report.threshold:g}, {report.vectors} vectors)")
    across = {"splits": report.across_splits, "sources": report.across_sources, "groups": report.across_groups}
    say(f"across {', across '.join(f'{name} {count}' for name, count in across.items())}")
    for cluster in report.largest[:3]:
        others = ", ".join(cluster["others"][:2])
        say(f"keeps {cluster['kept']}; like it, {cluster['images'] - 1}: {others}", f"{cluster['similarity']:.3f}")
    for leak in report.leaks:
        warn(f"leak: {leak['joined']} is {leak['kept']}; it moved from {leak['moved_from']} to {leak['moved_to']}")
    if report.across_splits and not report.joined:
        warn(f"{report.across_splits} clusters lie in several splits: what is learnt in one is tested in the other")
        warn("look at the view 'near-duplicates across splits'; curate duplicates --join makes each cluster one group")
    if report.clusters:
        say(f"curate app --view near-duplicates --project {project.name}", "look:")


def select(
    project: ProjectOption = None,
    budget: Annotated[
        str | None, typer.Option(help="Images (500), or people's time (4h, 90m) \\[default: 500, or the project's].")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="How to choose; --list shows all \\[default: portfolio, or the project's].")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the strategy, as key=value (repeatable).")
    ] = None,
    exemplars: Annotated[
        str | None,
        typer.Option(help="What rare defects look like: a saved view, a tag, or content ids with commas between."),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Only look for these classes (commas between) \\[default: the scarcest ones].")
    ] = None,
    per_stratum: Annotated[
        str | None,
        typer.Option(help="Most picks from one stratum: a number, 'equal' or 'proportional'. The audit has its own."),
    ] = None,
    near: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help=r"Cosine from which images are near-duplicates; 0: never \[default: by the data]."
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="No rules on top of the strategy: for comparing strategies.")
    ] = False,
    encoder: Annotated[str | None, typer.Option(help="Whose vectors to use \\[default: the newest].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same picks.")] = 0,
    explain: Annotated[
        str | None, typer.Option(metavar="ID", help="Choose nothing; say why this image was picked, or was not.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Choose and show, write nothing.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the strategies with their options.")] = False,
    json: JsonOption = False,
) -> None:
    """Choose the images that are worth labelling next, rare defects first, and say why for each."""
    if list_:
        _list(json)
        return
    from curate.ops import select as choosing
    from curate.select import run as selecting

    opened = open_project(project)
    request = selecting.request_of(
        opened,
        budget,
        strategy,
        options=option or [],
        classes=[name.strip() for name in (classes or "").split(",") if name.strip()],
        exemplars=exemplars,
        per_stratum=per_stratum,
        near=near,
        plain=plain,
        encoder=encoder,
        seed=seed,
    )
    if explain is not None:
        result = choosing.explain(opened, explain, request)
        if json:
            emit(result)
            return
        for lead, text in choosing.explained(result):
            say(text, lead, "bold" if lead == result["id"][:12] else "")
        return
    with bars() as step:
        chosen = choosing.run(opened, request, step, dry=dry_run)
    emit(chosen.to_json()) if json else _show(opened, chosen)


def _list(json: bool) -> None:
    from curate.strategies import CATALOGUE

    plugins = CATALOGUE.listing()
    if json:
        emit(
            {"strategies": {plugin.name: plugin.summary for plugin in plugins if not plugin.problem}}
            | plugins_json(plugins)
        )
        return
    list_plugins(plugins)


def _show(project: Project, chosen: SelectResult) -> None:
    about = chosen.manifest
    for note in chosen.notes:
        warn(note)
    name = f"round {about['round']:03d}"
    say(f"{about['picked']} of {about['candidates']} images, from {about['groups']} groups", name)
    say()
    rows([("slot", *_counts(about["slots"]))])
    if list(about["by_stratum"]) != [""]:
        rows([("stratum", *_counts(about["by_stratum"]))])
    if about["predicted_by"]:
        say(f"classes predicted by the {about['predicted_by']}:")
        rows([(colored(name, project.colors.get(name)), n) for name, n in about["by_predicted"].items()], right={1})
    say(f"about {duration(about['seconds'])} of labelling; {about['near_duplicates']} near-duplicates avoided")
    if chosen.written is None:
        say("nothing was written: --dry-run")
    elif not chosen.fresh:
        say("nothing has changed since this round was chosen; it stays as it is")
    else:
        say(f"curate app --view '{chosen.written.name}' --project {project.name}", "look:")
        say(f"curate push --project {project.name}", "then:")


def _counts(counts: dict[str, int]) -> list[str]:
    return [f"{name or '(none)'} {count}" for name, count in counts.items()]
