"""Design of a trial: from a request to the classes, folds, arms and recipe of its trainings.

    plot = planned(project, TrialRequest(stage="screen"))

A request that cannot be tried is refused: a class without defects, fewer groups than folds, an unknown arm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from curate import embed
from curate.data import Item
from curate.embed._base import Encoder
from curate.errors import CurateError, unknown
from curate.index.dataset import Index
from curate.project import Project
from synth import gates, generate
from synth.trial import arms, downscale
from synth.trial.arms import AUGMENTED, BALANCED, BLENDS, Arm, FoldData, TrialRun
from train import recipe
from train.fit import pretrained
from train.recipe import Augmentation, Recipe, Sampler, Schedule

ARMS = ("real", "balanced", "augmented", "paste", "poisson", "diffusion", "gan")
STAGES = ("screen", "full")
# What learns something from ten defects in half a minute of one core: features that are there, and a new decoder.
SMALL = (
    *("model.encoder=mobilenet_v2", "optimiser.lr=3e-3", 'phases=[{"epochs": 1, "train": "head"}]'),
    'model.options={"encoder_depth": 4, "decoder_channels": [64, 32, 24, 16]}',
)
RECIPE = "unet-resnet"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrialRequest:
    """Request for a trial. The stage sets values that are None: `screen` is one fold, one budget, one ratio and three
    seeds; `full` is all folds, three budgets, three ratios and five seeds of the baselines, and of the two generative
    synthesisers that were best when screened. `size` is the side of a crop in training, `window` of what is painted
    (the same, if it is None)."""

    stage: str = "screen"
    arms: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    budgets: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    seeds: int | None = None
    folds: int = 4
    tested: int | None = None
    recipe: str = RECIPE
    overrides: tuple[str, ...] = ()
    steps: int = 400
    size: int = 64
    window: int | None = None
    scale: float = 1.0
    cleans: int = 60
    encoder: str = gates.ENCODER
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    device: str = "auto"
    dry_run: bool = False


@dataclass(frozen=True)
class TrialDesign:
    """All that a trial's trainings follow from."""

    request: TrialRequest
    home: Path
    classes: tuple[str, ...]
    parts: tuple[FoldData, ...]
    blocked: tuple[Item, ...]
    max_pixels: int
    base: Recipe
    encoder: Encoder
    runs: tuple[TrialRun, ...]
    device: str
    real: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @cached_property
    def weights(self) -> str:
        return pretrained.mark_of(self.base.model)


def planned(
    project: Project, request: TrialRequest, progress: Progress = lambda stage, done, total: None
) -> TrialDesign:
    from curate.devices import device_of

    if request.stage not in STAGES:
        raise unknown("stage", request.stage, STAGES)
    home = project.work / "synth" / "trials"
    index = Index(project)
    items, blocked = _items(index)
    classes = request.classes or tuple(name for name in index.project.active_classes if _drawn(items, name))
    real = arms.defects(items, classes)
    notes = _checked(request, items, classes, index.project.active_classes)
    items = [item for item in items if item.label.present <= set(classes)]
    limit = project.config.limits.max_pixels
    if request.scale < 1:
        items = downscale.shrunk(items, request.scale, home, limit, progress)
    parts = arms.parts(items, request.folds, request.cleans)
    names = tuple(generate.plain(name) for name in request.arms or _of_stage(home, request))
    _check_arms(names, request)
    full = request.stage == "full"
    runs = arms.runs(
        arms.arms(names, request.ratios or ((0.5, 1.0, 2.0) if full else (1.0,))),
        range(request.tested or (request.folds if full else 1)),
        request.budgets or ((5, 10, 20) if full else (10,)),
        request.seeds or (5 if full else 3),
    )
    encoder = embed.build(request.encoder)
    device = device_of(request.device)
    return TrialDesign(
        request,
        home,
        classes,
        tuple(parts),
        blocked,
        limit,
        base_of(request),
        encoder,
        tuple(runs),
        device,
        real,
        notes,
    )


def _items(index: Index) -> tuple[list[Item], tuple[Item, ...]]:
    """Items that may take part: real labelled images of train with located defects, and all of val and test."""
    rows = list(index.rows("status", "split", "source", "missing"))
    ours = [id for id, *row in rows if row[:2] == ["labelled", "train"] and row[2] != "synthetic" and not row[3]]
    judged = [id for id, _, split, *_ in rows if split in ("val", "test")]
    items = [item for item in index.items(sorted(ours)) if not item.label.present or _placed(item)]
    return items, tuple(index.items(sorted(judged)))


def _placed(item: Item) -> bool:
    return item.label.present == {defect.label for defect in item.label.defects if defect.rle}


def _drawn(items: Sequence[Item], name: str) -> bool:
    return any(name in item.label.present for item in items)


def _checked(
    request: TrialRequest, items: Sequence[Item], classes: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    """Raises where there is nothing to try; notes say what will be thin."""
    for name in classes:
        if name not in known:
            raise unknown("class", name, known)
    if not 0 < request.scale <= 1:
        raise CurateError(f"scale {request.scale:g} does not exist; allowed: above 0, up to 1")
    if request.folds < 2 or not 1 <= (request.tested or 1) <= request.folds:
        raise CurateError(
            f"{request.tested or request.folds} of {request.folds} folds cannot be: 2 folds or more, 1 tested or more"
        )
    if not any(item.label.clean for item in items):
        raise CurateError("no clean labelled image in train: there is nothing to put defects on; label some as clean")
    groups = {name: len({item.group or item.id for item in items if name in item.label.present}) for name in classes}
    few = {name: count for name, count in groups.items() if count < request.folds}
    if few or not classes:
        counted = ", ".join(f"{name} {count}" for name, count in few.items()) or "no class has a drawn defect"
        raise CurateError(
            f"too few groups for {request.folds} folds: {counted}. Label more, or choose --class and --folds"
        )
    thin = [f"{name} comes from {count} groups: its intervals are wide" for name, count in groups.items() if count < 10]
    return tuple(thin)


def _of_stage(home: Path, request: TrialRequest) -> tuple[str, ...]:
    """All arms that are there; in full only the best two generative ones, if there was a screening."""
    there = [name for name in ARMS if name in arms.BASELINES or name in generate.MAKE.names()]
    file = home / "screen.json"
    if request.stage == "screen" or not file.is_file():
        return tuple(there)
    chosen = json.loads(file.read_text(encoding="utf-8"))["best"]
    return tuple(name for name in there if name in (*arms.BASELINES, *BLENDS, *chosen))


def _check_arms(names: Sequence[str], request: TrialRequest) -> None:
    known = (*arms.BASELINES, *generate.MAKE.names())
    for name in (*names, *request.options):
        if name not in known:
            raise unknown("arm", name, known)
    for name, given in request.options.items():
        options = [*generate.FIT.options(name), *generate.MAKE.options(name)]
        for key in given:
            if key not in options:
                raise unknown(f"option of synthesiser {name}", key, options)
    if BALANCED not in names:
        raise CurateError(f"arms {', '.join(names)} have nothing to be held against: add {BALANCED}")


def options_of(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`NAME.KEY=VALUE`: options of synthesisers, checked; both of what they learn with and of what they make with."""
    options: dict[str, dict[str, Any]] = {}
    for text in given:
        name, _, rest = text.partition(".")
        name = generate.plain(name)
        option = rest.partition("=")[0]
        sides = [side for side in (generate.FIT, generate.MAKE) if option in side.options(name)]
        options.setdefault(name, {}).update(generate.options_of(sides[0] if sides else generate.FIT, name, [rest]))
    return options


def base_of(request: TrialRequest) -> Recipe:
    """The recipe that all arms share: one long epoch, whose images the arms choose; nothing else corrects the prior."""
    own = SMALL if request.recipe == RECIPE else ()
    sides = (f"input.height={request.size}", f"input.width={request.size}")
    loaded = recipe.load(request.recipe, [*own, *sides, *request.overrides])
    if loaded.task != "segmentation":
        raise CurateError(f"recipe '{request.recipe}' is for {loaded.task}; a trial needs one for segmentation")
    loaded = loaded.model_copy(update={"sampler": Sampler()})
    if twice := recipe.prior_corrections(loaded):
        raise CurateError(f"{' and '.join(twice)} corrects the class prior, and so does the trial: leave it out")
    schedule = Schedule(name=loaded.schedule.name, warmup=0.05)
    first = loaded.phases[:1]  # what it trains, and how fast
    phases = tuple(phase.model_copy(update={"epochs": 1}) for phase in first)
    return loaded.model_copy(
        update={"schedule": schedule, "phases": phases, "epochs": 1, "steps": None, "accumulate": 1}
    )


def recipe_of(base: Recipe, arm: Arm, seed: int) -> Recipe:
    """Only the augmented arm has the recipe's augmentation."""
    plain = Augmentation(defect_crops=base.augmentation.defect_crops)
    return base.model_copy(update={"seed": seed, "augmentation": base.augmentation if arm.name == AUGMENTED else plain})


def real_of(plot: TrialDesign, fold: int, budget: int) -> list[Item]:
    return arms.budgeted(plot.parts[fold].train, plot.classes, budget)
