"""`audit`, `stop-check`: unbiased figures from the audit picks, and whether another round is worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import JsonOption, ProjectOption, colored, emit, open_project, rows, say, warn

if TYPE_CHECKING:
    from curate.audit.estimates import Interval
    from curate.audit.run import AuditReport, ClassEstimates, StopCheck
    from curate.project import Project

ConfidenceOption = Annotated[float, typer.Option(min=0.5, max=0.9999, help="How sure the bounds should be.")]


def register(app: typer.Typer) -> None:
    app.command()(audit)
    app.command("stop-check")(stop_check)


def audit(
    project: ProjectOption = None,
    classes: Annotated[list[str] | None, typer.Option("--class", help="Only this class (repeatable).")] = None,
    confidence: ConfidenceOption = 0.95,
    every: Annotated[
        bool, typer.Option("--all", help="Also take rounds that were drawn at random as a whole (select --plain).")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Estimate how frequent each defect is and what the predictions miss, without bias, from the audit picks alone."""
    from curate.audit import run as auditing

    opened = open_project(project)
    result = auditing.survey(auditing.read(opened), opened.class_names, classes or [], confidence, every)
    emit(result.to_json()) if json else _show(opened, result)


def _show(project: Project, report: AuditReport) -> None:
    for note in report.notes:
        warn(note)
    say(f"{report.labelled} labelled audit picks, from {_rounds(report.rounds)}", project.name)
    say()
    head = (
        "class",
        "audit picks that show it",
        f"prevalence ({100 * report.confidence:g} %)",
        "recall",
        "false alarms",
    )
    rows([head, *(_line(project, report, estimates) for estimates in report.estimates)], right={1})
    say()
    say(
        f"share of the {report.population:,} images that could be picked in {_rounds(report.prevalence_rounds[:1])}",
        "prevalence:",
    )
    if report.predicted_by:
        say(
            f"predictions of the {' and the '.join(report.predicted_by)}, as they stood when the round was drawn",
            "recall, false alarms:",
        )


def _rounds(numbers: list[int]) -> str:
    return ", ".join(f"round {number:03d}" for number in numbers)


def _line(project: Project, report: AuditReport, estimates: ClassEstimates) -> tuple[Any, ...]:
    name = (
        colored("any defect", None)
        if estimates.name is None
        else colored(estimates.name, project.colors.get(estimates.name))
    )
    few = f"too few to say ({estimates.shown} of {report.labelled} audit picks show it)"
    prevalence = _share(estimates.prevalence, f"too few to say ({estimates.prevalence.n} audit picks)")
    return (
        name,
        estimates.shown,
        prevalence,
        _share(estimates.recall, few),
        _share(estimates.false_alarms, "too few to say"),
    )


def _share(interval: Interval | None, few: str) -> str:
    from curate.audit.run import is_meaningful

    if interval is None:
        return "no predictions"
    if not is_meaningful(interval):
        return few
    return f"{_percent(interval.estimate)} % ({_percent(interval.low)} to {_percent(interval.high)} %)"


def _percent(share: float) -> str:
    """Two digits are all that such an interval is worth."""
    percent = 100 * share
    return f"{percent:.0f}" if percent >= 9.95 else f"{percent:.2g}"


def stop_check(
    project: ProjectOption = None,
    acceptable: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="The share of the remaining images that may show a defect.")
    ] = 0.01,
    confidence: ConfidenceOption = 0.95,
    json: JsonOption = False,
) -> None:
    """Say whether another round is worth it: what the audit shows to be left, and whether predictions have settled."""
    from curate.audit import run as auditing

    opened = open_project(project)
    facts = auditing.read(opened)
    result = auditing.check(facts, auditing.settling(opened, facts.images), acceptable, confidence)
    emit(result.to_json()) if json else _advise(result)


def _advise(result: StopCheck) -> None:
    for note in result.notes:
        warn(note)
    styles = {"go on": "bold yellow", "stop": "bold green"}
    by = f"(by the audit of round {result.round:03d})" if result.round is not None else ""
    say(by, result.advice.verdict, styles.get(result.advice.verdict, "bold"))
    for reason in result.advice.reasons:
        say(f"  {reason}")
