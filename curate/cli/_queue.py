"""`push`, `pull`, `watch`, `annotators`: to the queue, back with what people did, and how they agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import JsonOption, ProjectOption, bars, colored, emit, open_project, rows, say, warn
from curate.errors import CurateError

if TYPE_CHECKING:
    from curate.project import Project
    from labeling.pull import PullReport as Pulled
    from labeling.push import PushReport as Pushed

LISTED = 5  # refusals that are told one by one


def register(app: typer.Typer) -> None:
    app.command()(push)
    app.command()(pull)
    app.command()(watch)
    app.command()(annotators)


def push(
    project: ProjectOption = None,
    number: Annotated[int | None, typer.Option("--round", min=1, help=r"Which round \[default: the newest].")] = None,
    view: Annotated[
        str | None,
        typer.Option(help="Instead of a round: labelled images of this saved view, for a second look at their labels."),
    ] = None,
    predictions: Annotated[
        str, typer.Option(metavar="FIELD", help="The field of the index with the regions to suggest.")
    ] = "predictions",
    suggest: Annotated[
        bool, typer.Option("--suggest/--no-suggest", help="Show annotators what the model predicts. Never for audits.")
    ] = True,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="Take back the tasks that nobody has touched, instead.")
    ] = False,
    reset_config: Annotated[
        bool, typer.Option("--reset-config", help="Replace a label config that was changed by hand in Label Studio.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Send a round to Label Studio, one task an image in the order of the picks; safe to repeat."""
    from curate.ops import push as pushing
    from labeling import client
    from labeling.push import PushRequest

    if number is not None and view is not None:
        raise CurateError("--round and --view are two different things to push: give one of them")
    opened = open_project(project)
    request = PushRequest(number, view, predictions, suggest, reset_config)
    studio = client.connect(opened)
    if withdraw:
        result = pushing.withdraw(opened, studio, request)
        emit(result) if json else _withdrawn(result)
        return
    with bars() as step:
        report = pushing.run(opened, studio, request, step)
    emit(report.to_json()) if json else _pushed(report)


def _withdrawn(result: dict[str, Any]) -> None:
    say(
        f"{result['withdrawn']} tasks of {result['batch']}; {result['kept']} are worked on and stay",
        "withdrew",
        "green",
    )


def _pushed(report: Pushed) -> None:
    for note in report.notes:
        warn(note)
    counts = f"{report.created} created, {report.existing} there already ({report.updated} of them updated)"
    say(f"{counts}, {len(report.refused)} refused", f"{report.batch}:", "green")
    if report.labelled:
        say(f"{report.labelled} picks are labelled, skipped or disputed already and need nobody")
    if report.doubles:
        say(f"{report.doubles} doubled tasks were removed; none of them was annotated")
    _listed("refused", report.refused)
    _listed("sent without a suggestion", report.dropped)
    say(report.url, "label at")
    say("curate pull", "then:")


def _listed(what: str, entries: list[dict[str, str]]) -> None:
    for entry in entries[:LISTED]:
        warn(f"{what}: {entry['id'][:12]}: {entry['reason']}")
    if len(entries) > LISTED:
        warn(f"{what}: {len(entries) - LISTED} more; --json lists all")


def pull(
    project: ProjectOption = None,
    full: Annotated[
        bool, typer.Option("--full", help="Look at every task again, not only at what changed since the last pull.")
    ] = False,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Ask nobody: show every label anew from the label log, and say what differed."),
    ] = False,
    adopt: Annotated[
        int | None,
        typer.Option(metavar="PROJECT", help="Fetch from this Label Studio project, which somebody else made."),
    ] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", help="With --adopt: a class as THEIRS=OURS (repeatable).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Fetch what annotators did, with who, when and how long; safe to repeat."""
    from curate.ops import pull as pulling
    from labeling import client

    names = dict(_named(text) for text in map_ or [])
    opened = open_project(project)
    if rebuild:
        result = pulling.rebuild(opened)
        emit(result) if json else _rebuilt(result)
        return
    studio = client.connect(opened)
    with bars() as step:
        if adopt is not None:
            report = pulling.adopt(opened, studio, adopt, names, step)
        else:
            report = pulling.run(opened, studio, full, step)
    emit(report.to_json()) if json else _pulled(report)


def _rebuilt(result: dict[str, int]) -> None:
    say(f"{result['images']} images from the log; {result['changed']} showed another label", "rebuilt", "green")
    if result["captured"]:
        say(f"{result['captured']} edits of the App were logged first")


def _pulled(report: Pulled) -> None:
    for note in report.notes:
        warn(note)
    counts = f"{report.labelled} labelled, {report.skipped} skipped, {report.disputed} disputed"
    say(f"{report.annotations} new annotations on {report.images} images: {counts}", "pulled", "green")
    if report.deleted:
        say(f"{report.deleted} annotations were deleted in Label Studio; the log keeps them")
    if report.drafts:
        say(f"{report.drafts} tasks hold a draft that nobody has submitted")
    if report.edited_in_app:
        warn(f"{report.edited_in_app} images were also changed in the App: look at the view 'edited in app'")
    if report.strangers:
        warn(f"{report.strangers} tasks show images that are not in the index and were left alone")


def _named(text: str) -> tuple[str, str]:
    theirs, separator, ours = text.partition("=")
    if not separator or not theirs or not ours:
        raise typer.BadParameter(f"'{text}' is not THEIRS=OURS")
    return theirs, ours


def watch(
    project: ProjectOption = None,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks at the server.")] = 15,
    webhook: Annotated[
        bool, typer.Option("--webhook", help="Also let Label Studio call us, where it may: annotations come at once.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address on which to be called.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port for that; 0: any free one.")] = 0,
    json: JsonOption = False,
) -> None:
    """Pull as annotations come, until Ctrl-C. With --json, one object a line for each pull."""
    import threading
    from contextlib import nullcontext

    from labeling import client, remote_project
    from labeling import watch as watching

    opened = open_project(project)
    studio, wake = client.connect(opened), threading.Event()
    ls_project = remote_project.find(opened, studio)
    if ls_project is None:
        raise CurateError(f"nothing of project '{opened.name}' was pushed to {studio.url}. Run: curate push")
    tell = (lambda report: emit(report.to_json())) if json else _pulled
    if not json:
        say(f"{ls_project.url}, every {every:g} s; Ctrl-C ends it", "watching", "green")
    with watching.webhook(ls_project, host, port, wake) if webhook else nullcontext():
        watching.run(opened, studio, every, tell, warn, wake)


def annotators(
    project: ProjectOption = None,
    number: Annotated[int | None, typer.Option("--round", min=1, help=r"Only this round \[default: all].")] = None,
    json: JsonOption = False,
) -> None:
    """Show how far annotators agree, how fast each works, and who may be confirming without looking."""
    from labeling import annotators

    opened = open_project(project)
    report = annotators.report(annotators.logged(opened, number), opened.active_classes)
    emit(report) if json else _agreement(opened, report)


def _agreement(project: Project, report: dict[str, Any]) -> None:
    say(f"{report['images']} annotated images, {report['images_with_several']} of them by several people", project.name)
    if not report["images"]:
        say("curate pull", "nothing to compare yet:")
        return
    say()
    head = ("annotator", "images", "per hour", "median s", "skipped", "suggestions kept", "Dice with others")
    rows([head, *(_person(name, person) for name, person in report["annotators"].items())], right=range(1, 7))
    if report["images_with_several"]:
        say()
        head = ("class", "shown by anyone", "IoU", "Dice", "alpha", "Fleiss", "Cohen")
        lines = (
            _class(project, name, agreement)
            for name, agreement in report["classes"].items()
            if agreement["shown_by_anyone"]
        )
        rows([head, *lines], right=range(1, 7))
    for text in report["warnings"]:
        warn(text)


def _person(name: str, person: dict[str, Any]) -> tuple[Any, ...]:
    kept = "-" if person["kept"] is None else f"{100 * person['kept']:.0f} % of {person['preannotated']}"
    skipped = f"{100 * person['skipped']:.0f} %"
    pace = (_number(person["images_per_hour"], 0), _number(person["lead_time_median"], 1))
    return (name, person["images"], *pace, skipped, kept, _number(person["dice"], 2))


def _class(project: Project, name: str, agreement: dict[str, Any]) -> tuple[Any, ...]:
    values = (_number(agreement[key], 2) for key in ("iou", "dice", "alpha", "fleiss", "cohen"))
    return (colored(name, project.colors.get(name)), agreement["shown_by_anyone"], *values)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
