"""RESULTS.md from what the trainings left: the bar, tables with intervals, words; SEEN.md, by hand, at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from curate import files
from synth.trial import run as trial
from synth.trial import verdict
from synth.trial.arms import BALANCED, BLENDS, Arm
from synth.trial.design import TrialDesign
from synth.trial.verdict import MAIN, ArmResult
from tests.bench.figures.results import machine
from train.evaluate.intervals import Estimate
from train.evaluate.metrics import EvaluatedImages

HERE = Path(__file__).parent
PLACES = {"": "mean IoU"}
Answers = Mapping[tuple[int, Arm], Sequence[EvaluatedImages]]


def write(
    screen: TrialDesign,
    full: TrialDesign,
    curve: TrialDesign,
    more: Mapping[str, TrialDesign],
    target: Path = HERE / "RESULTS.md",
) -> None:
    """The learning curve, and what `more` holds by its title, may be missing yet."""
    if not full.runs:
        raise SystemExit("no seed is whole yet: python -m tests.bench.trial.run")
    found = trial.answers(full) | trial.answers(curve)
    lines, against = verdict.table(found), _held(found)
    trainings = len({run for plot in (screen, full, curve, *more.values()) for run in plot.runs})
    parts = [_head(full, trainings), "## The bar\n\n" + _bar(lines, against), _arms(full, lines)]
    parts += [_against(full, against), _curve(full, lines), *(_more(title, plot) for title, plot in more.items())]
    parts += [_words(lines), _gates(full), _screened(screen)]
    parts += [file.read_text(encoding="utf-8").strip() for file in HERE.glob("SEEN.md")]
    files.write_text(target, "\n\n".join(parts) + "\n")


def _held(found: Answers) -> list[ArmResult]:
    """Compare learned synthesisers with Poisson blending at the same ratio, gated against gated."""
    bases = {arm for _, arm in found if arm.name == "poisson"}
    order = sorted(bases, key=lambda arm: (arm.gated, arm.ratio))
    return [line for poisson in order for line in _held_against(found, poisson)]


def _held_against(found: Answers, poisson: Arm) -> list[ArmResult]:
    alike = {
        key: seeds
        for key, seeds in found.items()
        if key[1].synthetic and (key[1].ratio, key[1].gated) == (poisson.ratio, poisson.gated)
    }
    return [one for one in verdict.table(alike, poisson) if one.arm.name not in BLENDS and one.differences]


# --- parts of the page ----------------------------------------------------------------------------------------------


def _head(full: TrialDesign, trainings: int) -> str:
    seeds, folds = (sorted({getattr(one, name) for one in full.runs}) for name in ("seed", "fold"))
    return (
        "# Results of the trial of synthesis\n\n"
        f"Made by `make trial` on {time.strftime('%Y-%m-%d', time.gmtime())}; PROTOCOL.md, which was written first, "
        f"tells what was played. {trainings} trainings ({len(seeds)} seeds, {len(folds)} folds, that is all groups), "
        f"{trial._seconds(full):.0f} s each. {machine()}.\n\n"
        "Brackets hold 95 % intervals of the difference from `balanced`, paired by test image and seed; they draw"
        " groups and seeds again."
    )


def _bar(lines: Sequence[ArmResult], against: Sequence[ArmResult]) -> str:
    gated = [one for one in lines if one.arm.gated and one.differences]
    harmed = [f"{one.arm}: {place or 'mean'}" for one in gated for place, row in _mains(one) if verdict.below(row)]
    above = [str(one.arm) for one in against if verdict.above(one.differences[""][MAIN])]
    helped = [f"{one.arm}: {name}" for one in lines for name, yes in verdict.positive(one.differences).items() if yes]
    rows = [
        f"no gated arm significantly below `balanced`: {_met(not harmed, harmed)}",
        f"`diffusion` or `gan` above `poisson` in mean IoU: {_met(bool(above), above)}",
        f"classes that an arm helps, nothing being worse: {', '.join(helped) or 'none'}",
    ]
    return "\n".join(f"- {row}" for row in rows)


def _mains(line: ArmResult) -> Iterator[tuple[str, Estimate]]:
    return ((place, row[MAIN]) for place, row in line.differences.items())


def _met(yes: bool, names: Sequence[str]) -> str:
    return f"**{'met' if yes else 'missed'}**" + (f" ({', '.join(names)})" if names else "")


def _arms(full: TrialDesign, lines: Sequence[ArmResult]) -> str:
    budgets = {one.budget for one in full.runs}
    text = verdict.text([one for one in lines if one.budget in budgets], full.classes)
    return "## With ten real defects of each class\n\n" + _table(text)


def _more(title: str, plot: TrialDesign) -> str:
    """A screening at other budgets or ratios: the bar for each budget, the arms, the gates."""
    if not plot.runs:
        return f"## {title}\n\nNot played."
    found = trial.answers(plot)
    lines, against = verdict.table(found), _held(found)
    folds, seeds = (len({getattr(one, name) for one in plot.runs}) for name in ("fold", "seed"))
    said = [f"## {title}", f"A screening: {folds} of {plot.request.folds} folds, {seeds} seeds."]
    for budget in sorted({one.budget for one in lines}):
        of, held = ([one for one in some if one.budget == budget] for some in (lines, against))
        said += [f"With {budget} real defects of each class:", _bar(of, held)]
    said += [_table(verdict.text(lines, plot.classes)), "IoU against Poisson blending:"]
    return "\n\n".join([*said, _table(_apart(plot, against)), _left(plot)])


def _screened(screen: TrialDesign) -> str:
    if not screen.runs:
        return "## Screening\n\nNot played."
    text = verdict.text(verdict.table(trial.answers(screen)), screen.classes)
    return "## Screening\n\nThe first fold alone, three seeds.\n\n" + _table(text)


def _against(full: TrialDesign, lines: Sequence[ArmResult]) -> str:
    said = "## Against Poisson blending\n\nIoU, gated against gated and unfiltered against unfiltered.\n\n"
    return said + _table(_apart(full, lines))


def _apart(plot: TrialDesign, lines: Sequence[ArmResult]) -> list[list[str]]:
    places = (*plot.classes, "")
    rows = [
        [str(one.budget), str(one.arm), *(_cell(one.differences[place][MAIN]) for place in places)] for one in lines
    ]
    return [["budget", "arm", *plot.classes, "mean IoU"], *rows]


def _curve(full: TrialDesign, lines: Sequence[ArmResult]) -> str:
    base = [one for one in lines if one.arm.name == BALANCED]
    rows = [["real defects a class", *full.classes, "mean IoU"]]
    for one in base:
        row = [f"{one.figures[place][MAIN].value:.3f}" for place in (*full.classes, "")]
        rows.append([str(one.budget), *row])
    return "## What real defects are worth\n\nIoU of `balanced` by how many it learnt from.\n\n" + _table(rows)


def _words(lines: Sequence[ArmResult]) -> str:
    said = [f"**{one.arm}**\n\n" + "\n".join(f"- {text}" for text in verdict.words(one).values()) for one in lines]
    shown = [text for one, text in zip(lines, said, strict=True) if one.differences]
    return "## In words\n\n" + "\n\n".join(shown)


def _gates(full: TrialDesign) -> str:
    notes = "\n".join(f"- {one}" for one in trial.unmade(full))
    return f"## What the gates left\n\nAn image may fail several gates.\n\n{_left(full)}\n\n{notes}".rstrip()


def _left(plot: TrialDesign) -> str:
    rows = [["budget", "arm", "fold", "made", "passed", "refused, by gate", "used, by class"]]
    for run in plot.runs:
        if run.arm.gated and run.seed == min(one.seed for one in plot.runs):
            about = trial.gated(plot, run)
            gates = dict(about["gates"])
            counts = [str(gates.pop(name, "-")) for name in ("made", "passed")]
            row = [str(run.budget), str(run.arm), str(run.fold + 1), *counts]
            rows.append([*row, _listed(gates), _listed(about["used"])])
    return _table(rows)


def _listed(of: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in of.items())


def _cell(one: Estimate) -> str:
    return f"{one.value:+.3f} [{one.low:+.2f}, {one.high:+.2f}]" if math.isfinite(one.value) else "-"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *rest])
