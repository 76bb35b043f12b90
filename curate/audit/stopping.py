"""Advice whether another labelling round is worth it, from audit picks and from the change of predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from curate.audit.estimates import Interval, Labels, Sizes, prevalence

KAPPA = 0.99  # Bloodgood and Vijay-Shanker 2009, over so many rounds:
STEADY_ROUNDS = 3
ACCEPTABLE = 0.01  # the share of remaining images that may show a defect


# --- defect kinds never seen ------------------------------------------------------------------------------------------


def good_turing(counts: npt.ArrayLike, draws: int | None = None, confidence: float = 0.95) -> Interval:
    """The probability that the next audit pick shows a species never seen: the share of singletons (Good 1953).

    A species is, for example, a class in a group. `counts` holds the number of audit picks that show each, `draws`
    the number of picks (clean ones too). The upper bound holds for any distribution (after McAllester and Schapire
    2000, with the constants of McAllester and Ortiz 2003), so it is wide: below some 100 picks it is of little use.
    """
    seen = np.asarray(counts, dtype=np.int64)
    n = int(seen.sum()) if draws is None else draws
    if n <= 0:
        return Interval(math.nan, 0.0, 1.0, 0, 0.0)
    share = min(float((seen == 1).sum()) / n, 1.0)
    # Half of the risk for the singletons' share (McDiarmid: a draw moves it by 2/n), half for the unseen mass itself.
    slack = (math.sqrt(2) + 1) * math.sqrt(math.log(2 / (1 - confidence)) / n)
    return Interval(share, 0.0, min(share + slack, 1.0), n, float(n))


# --- predictions that settle ------------------------------------------------------------------------------------------


class PredictionChange(NamedTuple):
    """Change of predictions from one round to the next."""

    mean_absolute: float
    changed: float  # the share of images whose predicted classes are others
    kappa: float  # over all decisions (image, class)
    kappa_by_class: tuple[float, ...]


def prediction_change(before: npt.ArrayLike, after: npt.ArrayLike, threshold: float = 0.5) -> PredictionChange:
    """Agreement of two rounds' predictions (n, C) for the same images, which no round may train on.

    On clean images the decisions for a rare class agree anyway: look at each class's kappa, too.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if old.shape != new.shape or old.ndim != 2:
        raise ValueError(f"both predictions must be (images, classes), not {old.shape} and {new.shape}")
    if not old.size:
        return PredictionChange(math.nan, math.nan, math.nan, (math.nan,) * old.shape[1])
    was, now = old >= threshold, new >= threshold
    classes = tuple(_kappa(a, b) for a, b in zip(was.T, now.T, strict=True))
    changed = float((was != now).any(axis=1).mean())
    return PredictionChange(float(np.abs(new - old).mean()), changed, _kappa(was.ravel(), now.ravel()), classes)


def _kappa(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Cohen's kappa (1960) of two rows of decisions; 1 where all are equal."""
    agreed, yes_a, yes_b = (float(v.mean()) for v in (a == b, a, b))
    chance = yes_a * yes_b + (1 - yes_a) * (1 - yes_b)
    return 1.0 if agreed == 1 else (agreed - chance) / (1 - chance)


# --- defects that are left --------------------------------------------------------------------------------------------


def missed(
    y: npt.ArrayLike,
    pi: npt.ArrayLike,
    strata: Labels = None,
    sizes: Sizes = None,
    *,
    labelled: int | None = None,
    found: int | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Number of defective images that are still unlabelled, from the last audit.

    `labelled` images of the audited population were labelled since the draw and `found` of them are defective,
    including audit picks (by default these alone).
    """
    share = prevalence(y, pi, strata, sizes, confidence)
    population = _population(pi, sizes)
    done = np.size(y) if labelled is None else labelled
    known = float(np.sum(y)) if found is None else found
    left = max(population - done, 0.0)
    estimate, low, high = (_clip(v * population - known, left) for v in share[:3])
    return Interval(estimate, low, high, share.n, share.effective_n)


def _population(pi: npt.ArrayLike, sizes: Sizes) -> float:
    return float(sum(sizes.values())) if sizes is not None else float((1 / np.asarray(pi, dtype=np.float64)).sum())


def _clip(count: float, most: float) -> float:
    return count if math.isnan(count) else min(max(count, 0.0), most)


def picks_needed(acceptable: float = ACCEPTABLE, confidence: float = 0.95) -> int:
    """Number of audit picks that, all clean, show that at most an `acceptable` share of a large pool is defective."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - acceptable))


# --- advice -----------------------------------------------------------------------------------------------------------

Verdict = Literal["go on", "stop", "too little data"]


@dataclass(frozen=True, slots=True)
class Advice:
    """A verdict, and the sentences that explain it."""

    verdict: Verdict
    reasons: list[str]

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True)
class Audit:
    """The last round's audit, and the labels of the audited population since."""

    y: npt.ArrayLike = ()
    pi: npt.ArrayLike = ()
    strata: Labels = None
    sizes: Mapping[str, float] | None = None
    labelled: int | None = None
    found: int | None = None

    @property
    def picks(self) -> int:
        return int(np.size(self.y))

    @property
    def remaining(self) -> float:
        done = self.picks if self.labelled is None else self.labelled
        return max(_population(self.pi, self.sizes) - done, 0.0)

    def missed(self, confidence: float) -> Interval:
        sample = (self.y, self.pi, self.strata, self.sizes)
        return missed(*sample, labelled=self.labelled, found=self.found, confidence=confidence)


def advice(
    audit: Audit,
    kappas: Sequence[float] = (),
    unseen: Interval | None = None,
    *,
    acceptable: float = ACCEPTABLE,
    confidence: float = 0.95,
) -> Advice:
    """Advise to stop only where the audit shows that little is left and predictions have settled.

    `kappas` are the rounds' `prediction_change(...).kappa`, the oldest first. `unseen` (from `good_turing`) is reported
    and does not decide. "At most" and "at least" are one-sided bounds, each at `confidence`.
    """
    left, about_audit = _left(audit, acceptable, confidence)
    settled, about_predictions = _settled(kappas)
    verdict = _verdict(left, settled)
    return Advice(verdict, [about_audit, about_predictions, *_unseen(unseen, confidence)])


Left = Literal["nothing", "little", "much", "unclear", "unknown"]


def _left(audit: Audit, acceptable: float, confidence: float) -> tuple[Left, str]:
    """The audit's result for the remaining images, as a word and as a sentence."""
    needed, remaining, single = picks_needed(acceptable, confidence), audit.remaining, audit.picks == 1
    if not audit.picks:
        return "unknown", f"No audit pick is labelled yet; {_enough(needed, acceptable)}."
    if not remaining:
        return "nothing", "No unlabelled image remains."
    subject = "1 audit pick" if single else f"{audit.picks:,} audit picks"
    # Two-sided at 1 - 2 (1 - confidence): each bound by itself then holds with `confidence`.
    count = audit.missed(2 * confidence - 1)
    if count.low > acceptable * remaining:
        least = f"at least {_percent(count.low / remaining)} of the remaining images show a defect {_sure(confidence)}"
        return (
            "much",
            f"{subject} {'shows' if single else 'show'} that {least}; {_percent(acceptable)} would be acceptable.",
        )
    most = f"at most {_percent(count.high / remaining)} of the remaining images show a defect {_sure(confidence)}"
    if count.high <= acceptable * remaining:
        return "little", f"{subject} {'shows' if single else 'show'} enough: {most}."
    if audit.picks < needed:
        return "unknown", f"{subject} {'says' if single else 'say'} little: {most}; {_enough(needed, acceptable)}."
    return "unclear", f"{subject} {'does' if single else 'do'} not rule out that much is left: {most}."


def _enough(needed: int, acceptable: float) -> str:
    return f"it takes about {needed} audit picks, all clean, to show that at most {_percent(acceptable)} do"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def _sure(confidence: float) -> str:
    return f"({100 * confidence:g} %)"


def _settled(kappas: Sequence[float]) -> tuple[bool | None, str]:
    """True where predictions have settled, None where too few rounds can be compared; and a sentence."""
    last = [k for k in kappas if not math.isnan(k)][-STEADY_ROUNDS:]
    listed = ", ".join(f"{math.floor(1000 * k) / 1000:.3f}" for k in last)
    if any(k < KAPPA for k in last):
        return False, f"Predictions still change from round to round (kappa {listed}; settled is {KAPPA} or more)."
    if len(last) < STEADY_ROUNDS:
        have = f"{len(last)} so far (kappa {listed})" if last else "none so far"
        return None, f"It takes {STEADY_ROUNDS} comparisons of rounds to tell whether predictions have settled; {have}."
    return True, f"Predictions have settled (kappa {listed})."


def _verdict(left: Left, settled: bool | None) -> Verdict:
    if left == "nothing":
        return "stop"
    if left in ("much", "unclear") or settled is False:
        return "go on"
    return "stop" if left == "little" and settled else "too little data"


def _unseen(unseen: Interval | None, confidence: float) -> list[str]:
    if unseen is None or not unseen.n:
        return []
    guess = f"About {_percent(unseen.estimate)} of images show a kind of defect that no audit has seen"
    return [f"{guess}, at most {_percent(unseen.high)} {_sure(confidence)}."]
