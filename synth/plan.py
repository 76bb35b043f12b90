"""`curate synth plan`: which classes are scarce, how many defects to make, and what stands in the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from curate.data import Item
from curate.index.dataset import Index
from curate.project import Project
from synth import generate, masks
from synth.nouns import MaskBank
from train.evaluate import run as evaluating

FEW_DONORS, FEW_GROUNDS = 5, 20
SHARE = 0.5  # of the commonest class's defects; with fewer a class is scarce
SPLIT = "val"  # test must not steer what is made: it is to judge what comes of it
WEAK = 0.8  # recall in the last evaluation on it; with less a class is scarce, however many defects it has
LEAST, MOST = 0.5, 5.0  # times the real defects


@dataclass(frozen=True)
class PlanRow:
    """A class in train: labelled images that show it, their groups, defects with a mask; and what to make.

    `donors`: the defects that the default window can hold. `recall` and `iou` are val's; None where nobody knows them.
    """

    name: str
    images: int
    groups: int
    defects: int
    donors: int
    recall: float | None
    iou: float | None
    scarce: bool
    make: int
    notes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        return self.make / self.defects if self.defects else 0.0

    @property
    def verdict(self) -> str:
        if self.make:
            return f"{self.ratio:.1f} times the real ones"
        if self.scarce:
            return "scarce"
        return "enough" if self.recall is not None else "enough by number; recall not known"


@dataclass
class SynthesisPlan:
    """The classes, the rarest first; `grounds`: clean images, and their groups."""

    lines: list[PlanRow]
    grounds: int
    ground_groups: int
    evaluation: str | None
    notes: list[str] = field(default_factory=list)

    @property
    def command(self) -> str | None:
        """Command that makes all that is planned, at the ratio that the scarcest class needs."""
        wanted = [line for line in self.lines if line.make]
        if not wanted:
            return None
        names = " ".join(f"--class '{line.name}'" for line in wanted)
        return f"curate synth generate paste {names} --ratio {max(line.ratio for line in wanted):.1f}"

    def to_json(self) -> dict[str, Any]:
        lines = [asdict(line) | {"ratio": round(line.ratio, 2)} for line in self.lines]
        return asdict(self) | {"lines": lines, "command": self.command}


def plan(
    project: Project, progress: Callable[[str, int, int], None] = lambda stage, done, total: None
) -> SynthesisPlan:
    index = Index(project)
    rows = index.rows("status", "split", "source")
    ids = [id for id, *row in rows if row[:2] == ["labelled", "train"] and row[2] != "synthetic"]
    bank = masks.bank(index, progress)
    figures, about = _evaluated(project)
    return planned(bank, list(index.items(ids)), figures, about)


def _evaluated(project: Project) -> tuple[dict[str, dict[str, float | None]], str | None]:
    """Recall and IoU of each class in the last evaluation on val, and which one that is."""
    evaluations = evaluating.evaluations(project, SPLIT)
    if not evaluations:
        return {}, None
    by_class = evaluations[0].metrics["classes"]
    values = {name: {key: _value(metrics.get(key)) for key in ("recall", "iou")} for name, metrics in by_class.items()}
    return values, f"model {evaluations[0].model[:8]} on {SPLIT}"


def _value(figure: Any) -> float | None:
    value = figure.get("value") if isinstance(figure, dict) else figure
    return float(value) if isinstance(value, int | float) else None


def planned(
    bank: MaskBank, items: Sequence[Item], figures: dict[str, dict[str, float | None]], evaluation: str | None
) -> SynthesisPlan:
    """Plan from counts and metrics alone."""
    defects = Counter(donor.name for donor in bank.donors)
    most = max(defects.values(), default=0)
    lines = [_line(name, bank, items, defects[name], most, figures.get(name, {})) for name in bank.classes]
    lines.sort(key=lambda line: (line.defects, line.name))
    groups = len({ground.group for ground in bank.grounds})
    notes = [f"{line.name}: {note}" for line in lines for note in line.notes] + list(bank.notes)
    if len(bank.grounds) < FEW_GROUNDS:
        text = f"only {len(bank.grounds)} clean images in train to put defects on ({FEW_GROUNDS} or more are wanted)"
        notes.append(f"{text}: label more as clean")
    if evaluation is None:
        notes.append(
            "no model is evaluated on val, so recall and IoU are not known, and a frequent class that a model misses "
            f"is not noticed. Run: curate evaluate --split {SPLIT}"
        )
    return SynthesisPlan(lines, len(bank.grounds), groups, evaluation, notes)


def _line(
    name: str, bank: MaskBank, items: Sequence[Item], defects: int, most: int, figures: dict[str, float | None]
) -> PlanRow:
    shown = [item for item in items if name in item.label.present]
    groups = len({item.group or item.id for item in shown})
    recall, iou = figures.get("recall"), figures.get("iou")
    scarce = defects < SHARE * most or (recall is not None and recall < WEAK)
    make = round(defects * min(max((most - defects) / defects, LEAST), MOST)) if scarce and defects else 0
    window = generate.window_of("paste", None)
    donors = sum(masks.holds(window, donor) for donor in bank.of(name))
    notes = [
        *_warnings(bank, name, shown, groups),
        *filter(None, [masks.left_out(bank.of(name), bank.grounds, window)]),
    ]
    return PlanRow(name, len(shown), groups, defects, donors, recall, iou, scarce, make, tuple(notes))


def _warnings(bank: MaskBank, name: str, shown: Sequence[Item], groups: int) -> list[str]:
    donors = len(bank.of(name))
    if not donors and shown:
        return [f"{len(shown)} images show it, but no defect has a mask: draw masks, boxes are not enough"]
    if not donors:
        return ["no image of train shows it: nothing can be made of nothing"]
    if donors < FEW_DONORS:
        return [
            f"only {donors} real defects with a mask: what is made of so few repeats them; label {FEW_DONORS} or more"
        ]
    return [f"all {donors} defects come from one group: what is made shows that piece alone"] if groups < 2 else []
