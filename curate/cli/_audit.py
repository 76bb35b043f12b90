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

    made = open_project(project)
    found = auditing.survey(auditing.read(made), made.class_names, classes or [], confidence, every)
    emit(found.to_json()) if json else _show(made, found)


def _show(made: Project, found: AuditReport) -> None:
    for note in found.notes:
        warn(note)
    say(f"{found.labelled} labelled audit picks, from {_rounds(found.rounds)}", made.name)
    say()
    head = ("class", "audit picks that show it", f"prevalence ({100 * found.confidence:g} %)", "recall", "false alarms")
    rows([head, *(_line(made, found, one) for one in found.figures)], right={1})
    say()
    say(
        f"share of the {found.population:,} images that could be picked in {_rounds(found.prevalence_rounds[:1])}",
        "prevalence:",
    )
    if found.predicted_by:
        say(
            f"predictions of the {' and the '.join(found.predicted_by)}, as they stood when the round was drawn",
            "recall, false alarms:",
        )


def _rounds(numbers: list[int]) -> str:
    return ", ".join(f"round {number:03d}" for number in numbers)


def _line(made: Project, found: AuditReport, one: ClassEstimates) -> tuple[Any, ...]:
    name = colored("any defect", None) if one.name is None else colored(one.name, made.colors.get(one.name))
    few = f"too few to say ({one.shown} of {found.labelled} audit picks show it)"
    prevalence = _share(one.prevalence, f"too few to say ({one.prevalence.n} audit picks)")
    return name, one.shown, prevalence, _share(one.recall, few), _share(one.false_alarms, "too few to say")


def _share(interval: Interval | None, few: str) -> str:
    from curate.audit.run import speaks

    if interval is None:
        return "no predictions"
    if not speaks(interval):
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

    made = open_project(project)
    facts = auditing.read(made)
    found = auditing.check(facts, auditing.settling(made, facts.known), acceptable, confidence)
    emit(found.to_json()) if json else _advise(found)


def _advise(found: StopCheck) -> None:
    for note in found.notes:
        warn(note)
    styles = {"go on": "bold yellow", "stop": "bold green"}
    by = f"(by the audit of round {found.round:03d})" if found.round is not None else ""
    say(by, found.advice.verdict, styles.get(found.advice.verdict, "bold"))
    for reason in found.advice.reasons:
        say(f"  {reason}")
