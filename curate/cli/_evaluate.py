"""`evaluate`, `compare`: what a model is worth on images that it has not learnt from, and whether another is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import (
    DeviceOption,
    JsonOption,
    ProjectOption,
    bars,
    colored,
    device_named,
    emit,
    near,
    open_project,
    rows,
    say,
    warn,
)
from curate.errors import CurateError

if TYPE_CHECKING:
    from curate.project import Project
    from train.evaluate.compare import Comparison
    from train.evaluate.cross_validate import Validation
    from train.evaluate.run import Evaluation

SplitOption = Annotated[str, typer.Option(help="test or val.")]
LeakOption = Annotated[
    bool, typer.Option("--allow-leak", help="Go on although the model has learnt from some of the images.")
]


def register(app: typer.Typer) -> None:
    app.command()(evaluate)
    app.command()(compare)


def evaluate(
    project: ProjectOption = None,
    model: Annotated[
        str | None, typer.Option(help=r"A model's key, candidate or production \[default: production, else candidate].")
    ] = None,
    split: SplitOption = "test",
    target_recall: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=RECALL", help="Fit this class's threshold on val, as crack=0.99 (repeatable)."),
    ] = None,
    allow_leak: LeakOption = False,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Judge the model's recipe by cross-validation instead: train it anew without each of so many folds of "
            "groups of train and val, and ask it about that fold. For classes with few groups. Takes long.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="With --folds: how often folds are dealt anew.")] = 3,
    with_test: Annotated[
        bool, typer.Option("--with-test", help="With --folds: deal test's groups, too; else test stays untouched.")
    ] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Show how good a model is on labelled images that it has not learnt from, with intervals, and where it fails."""
    from curate.ops import evaluate as evaluating
    from train.evaluate.run import EvaluateRequest

    made = open_project(project)
    if folds is not None:
        if split != "test" or allow_leak:
            raise CurateError(
                "--folds deals train and val (--with-test: test, too): leave out --split and --allow-leak"
            )
        _folds(made, (model, folds, repeats, with_test, _targets(target_recall or []), device_named(device)), json)
        return
    if with_test:
        raise CurateError("--with-test goes with --folds: without folds, test is what is judged")
    wish = EvaluateRequest(model, split, _targets(target_recall or []), allow_leak, device_named(device))
    with bars() as step:
        found = evaluating.run(made, wish, step)
    emit(found.to_json()) if json else _evaluated(found, made)


def _targets(texts: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise CurateError(f"--target-recall '{text}' is not CLASS=RECALL, for example crack=0.99")
    return found


def _folds(made: Project, wish: tuple[Any, ...], json: bool) -> None:
    from train.evaluate import cross_validate as folds

    task = folds.prepared(made, folds.CrossValidateRequest(*wish))
    if task.todo:
        warn(folds.cost(task))
    with bars() as step:
        found = folds.run(task, step)
    emit(found.to_json()) if json else _validated(found, made)


def _validated(found: Validation, project: Project) -> None:
    values, made = found.figures, found.manifest
    for note in made["notes"]:
        warn(note)
    if not found.fresh:
        say("nothing to do: this recipe is judged on these folds already")
    head = (
        f"by {made['folds']} folds, {made['repeats']} times, on {values['images']} images of {values['groups']} groups"
    )
    where = f"in {' and '.join(made['splits'])} ({values['support']['clean']['images']} clean)"
    say(f"{head} {where}", f"recipe of model {made['model']}", "green")
    _overall(values)
    _by_class(values, project)
    for name, one in values["operating"].items():
        say(_held(name, one))
    say(near(found.folder), "kept in:")


def _held(name: str, one: Mapping[str, Any]) -> str:
    parts = (
        f"recall {_number(one[key]['recall'])} ({_between(one[key]['recall'])}), false alarms "
        f"{_number(one[key]['false_alarms'])}"
        for key in ("held", "before")
    )
    fitted = f"{len(one['thresholds'])} folds, reached on {one['reached']} of their vals"
    fitted += f" ({one['unfitted']} vals show none)" if one["unfitted"] else ""
    return f"{name} at recall {one['target']:g}, fitted on {fitted}. On held-out folds: {'; before: '.join(parts)}"


def _evaluated(found: Evaluation, project: Project) -> None:
    values, made = found.figures, found.manifest
    for note in made["notes"]:
        warn(note)
    if not found.fresh:
        say("nothing to do: this model is evaluated on these labels already")
    head = f"on {values['images']} images of {values['groups']} groups in {made['split']}"
    say(f"{head} ({values['support']['clean']['images']} clean)", f"model {found.model}", "green")
    _overall(values)
    _by_class(values, project)
    for name, one in values["operating"].items():
        say(_operating(name, one, made["split"]))
    say(f"{near(found.folder / 'report.html')}; mistakes: curate app --project {project.name}", "report:")


def _overall(values: Mapping[str, Any]) -> None:
    from train.evaluate.html_report import TITLES

    base = values["baselines"]
    head = ("all classes", "", "95 % interval", f"always {', '.join(base['majority']['said'])}")
    table: list[tuple[str, ...]] = [head]
    for name, title in TITLES.items():
        if name in values["overall"]:
            beside = base.get("empty_submission", {}).get(name) or base["majority"].get(name)
            one = values["overall"][name]
            table.append((title, _number(one), _between(one), _number(beside) if beside else ""))
    rows(table, right={1, 3})


def _by_class(values: Mapping[str, Any], project: Project) -> None:
    say()
    names = {"recall": "recall", "precision": "precision", "f1": "F1", "ap": "AP"}
    names |= {"dice": "Dice"} if "dice" in values["overall"] else {}
    table: list[tuple[object, ...]] = [("  class", "images", "groups", *names.values())]
    for name, one in values["classes"].items():
        shown = values["support"][name]
        cells = (f"{_number(one[key])} ({_between(one[key])})" if _known(one[key]) else "-" for key in names)
        table.append((colored(name, project.colors.get(name)), shown["images"], shown["groups"], *cells))
    rows(table, right={1, 2})


def _operating(name: str, one: Mapping[str, Any], split: str) -> str:
    area = "" if one["min_area"] is None else f" and {one['min_area']} pixels"
    missed = "" if one["reached"] else " (val does not reach it)"
    parts = [
        f"recall {_number(one[key]['recall'])} ({_between(one[key]['recall'])}), false alarms "
        f"{_number(one[key]['false_alarms'])}"
        for key in ("val", "split")
    ]
    held = f"val: {parts[0]}; {split}: {parts[1]}"
    return f"{name} at recall {one['target']:g}{missed}: from {one['threshold']:.3f}{area} on. {held}"


def _known(one: Mapping[str, Any]) -> bool:
    return one["value"] is not None


def _number(one: Mapping[str, Any]) -> str:
    return f"{one['value']:.3f}" if _known(one) else "-"


def _between(one: Mapping[str, Any]) -> str:
    if not _known(one):
        return "nothing to measure"
    return "too few to say" if one["silent"] else f"{one['low']:.3f} to {one['high']:.3f}"


def compare(
    a: Annotated[str, typer.Argument(help="A model's key, candidate or production.")],
    b: Annotated[str, typer.Argument(help="The model that may be better.")],
    project: ProjectOption = None,
    split: SplitOption = "test",
    allow_leak: LeakOption = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Compare models A and B on the same images: differences with intervals, and a verdict in words."""
    from curate.ops import evaluate as evaluating
    from train.evaluate.run import EvaluateRequest

    made = open_project(project)
    with bars() as step:
        found = evaluating.compare(made, a, b, EvaluateRequest(None, split, {}, allow_leak, device_named(device)), step)
    emit(found.to_json()) if json else _compared(found)


def _compared(found: Comparison) -> None:
    for note in found.notes:
        warn(note)
    say(f"{found.a}, B: {found.b}, on {found.images} images of {found.groups} groups in {found.split}", "A:")
    for line in found.verdict:
        say(line)
