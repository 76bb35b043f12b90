"""`evaluate`, `compare`: what a model is worth on images that it has not learnt from, and whether another is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import (
    DeviceOption,
    JsonOption,
    ProjectOption,
    TargetOption,
    bars,
    colored,
    decision_text,
    device_named,
    emit,
    near,
    open_project,
    rows,
    say,
    targets_of,
    warn,
)
from curate.errors import CurateError

if TYPE_CHECKING:
    from curate.project import Project
    from train.evaluate.compare import Comparison
    from train.evaluate.cross_validate import CrossValidation
    from train.evaluate.efficiency import Efficiency
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
    target_recall: TargetOption = None,
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

    opened = open_project(project)
    if folds is not None:
        if split != "test" or allow_leak:
            raise CurateError(
                "--folds deals train and val (--with-test: test, too): leave out --split and --allow-leak"
            )
        _folds(opened, (model, folds, repeats, with_test, targets_of(target_recall or []), device_named(device)), json)
        return
    if with_test:
        raise CurateError("--with-test goes with --folds: without folds, test is what is judged")
    request = EvaluateRequest(model, split, targets_of(target_recall or []), allow_leak, device_named(device))
    with bars() as step:
        result = evaluating.run(opened, request, step)
    emit(result.to_json()) if json else _evaluated(result, opened)


def _folds(project: Project, request: tuple[Any, ...], json: bool) -> None:
    from train.evaluate import cross_validate as folds

    task = folds.make_task(project, folds.CrossValidateRequest(*request))
    if task.todo:
        warn(folds.cost(task))
    with bars() as step:
        result = folds.run(task, step)
    emit(result.to_json()) if json else _validated(result, project)


def _validated(result: CrossValidation, project: Project) -> None:
    values, manifest = result.metrics, result.manifest
    for note in manifest["notes"]:
        warn(note)
    if not result.fresh:
        say("nothing to do: this recipe is judged on these folds already")
    head = f"by {manifest['folds']} folds, {manifest['repeats']} times, on {values['images']} images"
    where = f"in {' and '.join(manifest['splits'])} ({values['support']['clean']['images']} clean)"
    say(f"{head} of {values['groups']} groups {where}", f"recipe of model {manifest['model']}", "green")
    _overall(values)
    _by_class(values, project)
    for name, point in values["operating"].items():
        say(_held(name, point))
    say(near(result.folder), "kept in:")


def _held(name: str, point: Mapping[str, Any]) -> str:
    parts = (
        f"recall {_number(point[key]['recall'])} ({_between(point[key]['recall'])}), false alarms "
        f"{_number(point[key]['false_alarms'])}"
        for key in ("held", "before")
    )
    fitted = f"{len(point['thresholds'])} folds, reached on {point['reached']} of their vals"
    fitted += f" ({point['unfitted']} vals show none)" if point["unfitted"] else ""
    return f"{name} at recall {point['target']:g}, fitted on {fitted}. On held-out folds: {'; before: '.join(parts)}"


def _evaluated(result: Evaluation, project: Project) -> None:
    values, manifest = result.metrics, result.manifest
    for note in manifest["notes"]:
        warn(note)
    if not result.fresh:
        say("nothing to do: this model is evaluated on these labels already")
    head = f"on {values['images']} images of {values['groups']} groups in {manifest['split']}"
    say(f"{head} ({values['support']['clean']['images']} clean)", f"model {result.model}", "green")
    _overall(values)
    _by_class(values, project)
    _by_stratum(values)
    if manifest["decisions"]:
        decided = (f"{name} from {decision_text(entry)}" for name, entry in manifest["decisions"].items())
        say(f"{', '.join(decided)} on; AP holds for all thresholds", "decides:")
    for name, point in values["operating"].items():
        say(_operating(name, point, manifest["split"]))
    say(f"{near(result.folder / 'report.html')}; mistakes: curate app --project {project.name}", "report:")


def _overall(values: Mapping[str, Any]) -> None:
    from train.evaluate.html_report import TITLES

    base = values["baselines"]
    head = ("all classes", "", "95 % interval", f"always {', '.join(base['majority']['said'])}")
    table: list[tuple[str, ...]] = [head]
    for name, title in TITLES.items():
        if name in values["overall"]:
            beside = base.get("empty_submission", {}).get(name) or base["majority"].get(name)
            metric = values["overall"][name]
            table.append((title, _number(metric), _between(metric), _number(beside) if beside else ""))
    rows(table, right={1, 3})


def _by_class(values: Mapping[str, Any], project: Project) -> None:
    say()
    names = {"recall": "recall", "precision": "precision", "f1": "F1", "ap": "AP"}
    names |= {"dice": "Dice"} if "dice" in values["overall"] else {}
    table: list[tuple[object, ...]] = [("  class", "images", "groups", *names.values())]
    for name, metrics in values["classes"].items():
        shown = values["support"][name]
        cells = (
            f"{_number(metrics[key])} ({_between(metrics[key])})" if _known(metrics[key]) else "-" for key in names
        )
        table.append((colored(name, project.colors.get(name)), shown["images"], shown["groups"], *cells))
    rows(table, right={1, 2})


def _by_stratum(values: Mapping[str, Any]) -> None:
    if not values["strata"]:
        return
    say()
    table: list[tuple[object, ...]] = [("  stratum", "images", "groups", "recall", "false alarms", "falls behind in")]
    for name, metrics in values["strata"].items():
        cells = (
            f"{_number(metrics[key])} ({_between(metrics[key])})" if _known(metrics[key]) else "-"
            for key in ("recall", "false_alarms")
        )
        behind = ", ".join(metrics["behind"]).replace("_", " ")
        table.append((f"  {name}", metrics["images"], metrics["groups"], *cells, behind))
    rows(table, right={1, 2})


def _operating(name: str, point: Mapping[str, Any], split: str) -> str:
    area = "" if point["min_area"] is None else f" and {point['min_area']} pixels"
    missed = "" if point["reached"] else " (val does not reach it)"
    parts = [
        f"recall {_number(point[key]['recall'])} ({_between(point[key]['recall'])}), false alarms "
        f"{_number(point[key]['false_alarms'])}"
        for key in ("val", "split")
    ]
    held = f"val: {parts[0]}; {split}: {parts[1]}"
    return f"{name} at recall {point['target']:g}{missed}: from {point['threshold']:.3f}{area} on. {held}"


def _known(metric: Mapping[str, Any]) -> bool:
    return metric["value"] is not None


def _number(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.3f}" if _known(metric) else "-"


def _shown(metric: Mapping[str, Any] | None) -> str:
    """The value with its interval, for a cell."""
    return f"{_number(metric)} ({_between(metric)})" if metric and _known(metric) else "-"


def _between(metric: Mapping[str, Any]) -> str:
    if not _known(metric):
        return "nothing to measure"
    return "too few to say" if metric["silent"] else f"{metric['low']:.3f} to {metric['high']:.3f}"


def compare(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Keys, candidate or production: A, and B that may be better."),
    ],
    project: ProjectOption = None,
    efficiency: Annotated[
        bool,
        typer.Option(
            "--efficiency",
            help="Of any number of models a table: score, false alarms, parameters, size, milliseconds per image, and "
            "the worst drop under other light where curate robustness has been run.",
        ),
    ] = False,
    split: SplitOption = "test",
    allow_leak: LeakOption = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Compare models on the same images: differences with intervals and a verdict, or a table of what each costs."""
    if len(models) != 2 and not efficiency:
        raise CurateError(
            f"{len(models)} models; allowed: two, or with --efficiency any number. See: curate models list"
        )
    from curate.ops import evaluate as evaluating
    from train.evaluate.compare import Comparison
    from train.evaluate.run import EvaluateRequest

    opened = open_project(project)
    request = EvaluateRequest(None, split, {}, allow_leak, device_named(device))
    with bars() as step:
        result = (
            evaluating.efficiency(opened, models, request, step)
            if efficiency
            else evaluating.compare(opened, models[0], models[1], request, step)
        )
    if json:
        emit(result.to_json())
    else:
        _compared(result) if isinstance(result, Comparison) else _efficiency(result)


def _efficiency(table: Efficiency) -> None:
    for note in table.notes:
        warn(note)
    names = {"macro_f1": "macro F1", "dice": "Dice", "clean_false_alarms": "false alarms"}
    shown = [name for name in names if any(name in row.metrics for row in table.rows)]
    head = ("model", "architecture", "input", *(names[name] for name in shown), "parameters")
    lines = [
        (
            row.model,
            f"{row.architecture} {row.encoder or ''}".strip(),
            "x".join(map(str, row.size)),
            *(_shown(row.metrics.get(name)) for name in shown),
            f"{row.parameters / 1e6:.1f} M",
            f"{row.megabytes:.1f} MB",
            f"{row.p50_ms:.0f}",
            f"{row.p95_ms:.0f}",
            "not known" if row.worst_drop is None else f"{-row.worst_drop:+.2f} {row.worst or ''}".strip(),
        )
        for row in table.rows
    ]
    rows([(*head, "weights", "ms p50", "p95", "worst drop"), *lines], right=set(range(3, len(head) + 3)))
    say(
        f"{table.images} images of {table.groups} groups in {table.split}; milliseconds from an image's file to its "
        f"regions, {table.timed} images on {table.device}"
    )
    if any(row.worst_drop is None for row in table.rows):
        say("for the worst drop under other light, run: curate robustness --model MODEL")


def _compared(result: Comparison) -> None:
    for note in result.notes:
        warn(note)
    say(f"{result.a}, B: {result.b}, on {result.images} images of {result.groups} groups in {result.split}", "A:")
    for line in result.verdict:
        say(line)
