"""`simulate`: whether a strategy would have beaten random on data that are labelled already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import (
    DeviceOption,
    JsonOption,
    ProjectOption,
    bars,
    device_named,
    emit,
    near,
    open_project,
    rows,
    say,
    warn,
)

if TYPE_CHECKING:
    from train.simulate.run import SimulateResult


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def simulate(
    project: ProjectOption = None,
    strategies: Annotated[
        str, typer.Option(help="Which to play, commas between; random is always played beside them.")
    ] = "portfolio,random",
    start: Annotated[
        str,
        typer.Option(
            help="Known at first: none, exemplars (of --rare), hidden (all but --rare), or so many images a class."
        ),
    ] = "none",
    rare: Annotated[str | None, typer.Option(help="The class whose pieces are counted first.")] = None,
    exemplars: Annotated[
        int, typer.Option(min=1, help="How many, one a group; with --start hidden, images for each other class.")
    ] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="How often to select, reveal and train.")] = 5,
    budget: Annotated[
        str, typer.Option(help="A round's: images (40), a share of the pool (2%), or annotators' simulated time (30m).")
    ] = "2%",
    seeds: Annotated[int, typer.Option(min=1, help="Plays a strategy; they take turns with the folds.")] = 6,
    folds: Annotated[int, typer.Option(min=2, help="One of so many grouped folds is the test of a play.")] = 5,
    learner: Annotated[
        str, typer.Option(help="probe (linear, on vectors: seconds), classifier or segmenter (minutes).")
    ] = "probe",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A key of the classifier's or segmenter's recipe (repeatable).")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Only look for these classes (commas between), as in select.")
    ] = None,
    imbalance: Annotated[
        float, typer.Option(min=1, help="Take images of --rare away until the largest class has so many times more.")
    ] = 1.0,
    plain: Annotated[bool, typer.Option("--plain", help="No rules on top of the strategies, as in select.")] = False,
    encoder: Annotated[str | None, typer.Option(help=r"Whose vectors to use \[default: the newest].")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Plays at a time (probe only).")] = 1,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Does it beat random on my data? Hides the labels there are, buys them back round by round, and says."""
    from train.simulate import run as simulating
    from train.simulate.one_run import RunSettings

    setting = RunSettings(
        start=start,
        rare=rare,
        exemplars=exemplars,
        rounds=rounds,
        budget=budget,
        wanted=_names(classes),
        learner=learner,
        rules=not plain,
        imbalance=imbalance,
        folds=folds,
    )
    request = simulating.SimulateRequest(
        _names(strategies), setting, seeds, jobs, encoder, tuple(set_ or ()), device_named(device)
    )
    opened = open_project(project)
    try:
        with bars() as step:
            result = simulating.run(opened, request, step)
    except KeyboardInterrupt:
        warn("stopped; what was played is kept: the same command goes on from here")
        raise
    emit(result.to_json()) if json else _show(result)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _show(result: SimulateResult) -> None:
    report = result.result
    for note in report["notes"]:
        warn(note)
    if not result.fresh:
        say("nothing to do: this was played already, on these labels and vectors")
    say(report["about"])
    for section in report["sections"]:
        _table(section)
    for line in report["verdict"]:
        say(line)
    say(near(result.folder / "report.html"), "report:")


def _table(section: dict[str, Any]) -> None:
    judged = any(row.get("full") is not None for row in section["rows"])
    cold = any("discovery" in row for row in section["rows"])
    head = ["", "pieces found", "gap closed", "images found", *(["macro F1", "labels to 90 %", "to 95 %"] * judged)]
    head += ["labels to see all classes", "each in 3 pieces"] * cold
    rows([(*head, "s a round"), *(_row(row, judged, cold) for row in section["rows"])], right=set(range(1, 10)))
    full = next((row["full"] for row in section["rows"] if row.get("full") is not None), None)
    if full is not None:
        say(f"a learner with all labels of the pool: macro F1 {full:.3f}")


def _row(row: dict[str, Any], judged: bool, cold: bool) -> tuple[str, ...]:
    if not row["plays"]:
        return (row["strategy"], row["failed"] or "not played")
    cells = [_share(row.get(name)) for name in ("group_recall", "gap_closed", "image_recall")]
    if judged:
        cells += [_fixed(row["macro_f1"], 3), *(_fixed(row[f"labels_{share}"], 0, "not reached") for share in (90, 95))]
    if cold:
        cells += [_labels_to_discover(row, name) for name in ("once", "thrice")]
    return (row["strategy"], *cells, _fixed(row["seconds"], 2))


def _labels_to_discover(row: dict[str, Any], name: str) -> str:
    """`87`, or `> 104 (3 of 6 runs)` where the other runs ended before."""
    found = row["discovery"]
    labels, reached = found[f"labels_{name}"], found[f"reached_{name}"]
    return f"{labels:.0f}" if reached == row["plays"] else f"> {labels:.0f} ({reached} of {row['plays']} runs)"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _fixed(value: float | None, digits: int, without: str = "-") -> str:
    return without if value is None else f"{value:.{digits}f}"
