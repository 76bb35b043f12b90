"""`curate select`: from a project and a budget to a round that is written, shown and explained."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from curate import __version__, state, tables
from curate.errors import CurateError
from curate.hashing import key_of
from curate.index import rounds, sync
from curate.index.dataset import Index
from curate.index.rounds import Round
from curate.labels import log as label_log
from curate.project import Project
from curate.select import build_pool, cost, linear_probe
from curate.select import rules as selection
from curate.select.build_pool import BuiltPool
from curate.select.cost import CostModel, ImageBudget, TimeBudget
from curate.select.pool import Floats, Picks, Pool, Rows
from curate.select.rules import BARE, Selection, SelectionRules
from curate.strategies import CATALOGUE, DEFAULT
from curate.vectors import nearest
from curate.vectors import store as vectors

LIKELY = 0.5  # from here on an image counts as predicted to show a class
AUTO = -1.0  # as a cosine: judge near-duplicates by the data's own measure
NEAR = 0.15  # of the usual distance: vectors alone must be sure
TRIES = 4  # to make a round fit a time
NO_PROGRESS: Callable[[str, int, int], None] = lambda stage, done, total: None  # noqa: E731


class NothingToPick(CurateError):
    """Every image is labelled, waits, or is barred for another reason."""


@dataclass(frozen=True)
class SelectRequest:
    """What the user asks for."""

    budget: str = "500"
    strategy: str = DEFAULT
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    exemplars: str | None = None
    classes: tuple[str, ...] = ()
    encoder: str | None = None
    rules: SelectionRules = field(default_factory=SelectionRules)


def usual(project: Project, budget: str | None = None) -> SelectRequest:
    """What project.toml asks for."""
    config = project.config.select
    rules = SelectionRules(near=AUTO, per_stratum=config.per_stratum)
    return SelectRequest(budget or config.budget, config.strategy, options=dict(config.options), rules=rules)


@dataclass
class SelectResult:
    """What came of it; `written` is None after a dry run, `fresh` false where nothing had to change."""

    manifest: dict[str, Any]
    picks: list[dict[str, Any]]
    notes: list[str]
    written: Round | None = None
    fresh: bool = True

    def to_json(self) -> dict[str, Any]:
        names = ("id", "path", "slot", "score", "reason")
        return {
            "round": self.manifest["round"],
            "strategy": self.manifest["strategy"],
            "seed": self.manifest["seed"],
            "picks": [{name: row[name] for name in names} for row in self.picks],
            "notes": self.notes,
            "written": self.written is not None and self.fresh,
        }


def run(project: Project, wish: SelectRequest, progress: Any = NO_PROGRESS, *, dry: bool = False) -> SelectResult:
    """Choose, and unless `dry` write the round. The caller holds the writer lock then."""
    began = time.perf_counter()
    CATALOGUE.load(wish.strategy)
    budget = cost.parse_budget(wish.budget)
    if "dataset" in state.recorded(project):  # else the index says what is missing
        vectors.open_latest(project.work, wish.encoder)  # before the database takes its time
    index = Index(project)
    if not dry:
        sync.capture_app_edits(index)
    progress("reading vectors", 0, 1)
    built = build_pool.build(index, wish.encoder, wish.exemplars, wish.classes)
    progress("reading vectors", 1, 1)
    model = cost_model(project)
    wish = replace(wish, rules=_rules(wish.rules, built.pool))
    built.pool = replace(built.pool, turn=_number(index, built))
    chosen = _prepared(index, built, wish, model)
    if not dry and (same := _same(project, chosen.manifest["key"])):
        rounds.show(index)
        here = [row | {"path": built.seen[row["id"]].path} for row in same.picks()]  # the project may have moved
        return SelectResult(same.manifest, here, chosen.notes, same, fresh=False)
    batch = _choose(built, wish, budget, model, progress)
    _complete(chosen, built, batch, model, wish)
    chosen.manifest["took"] = round(time.perf_counter() - began, 1)
    if not dry:
        newest = rounds.latest(project.work)
        if newest and newest.number < chosen.manifest["round"] and not newest.touched:
            rounds.mark(newest, touched=label_log.now())  # in the App: from now on nothing may take it away
        chosen.written = rounds.write(project.work, chosen.manifest, chosen.picks, _predicted(built.pool))
        rounds.show(index)
    return chosen


def _rules(rules: SelectionRules, pool: Pool) -> SelectionRules:
    """What counts as a near-duplicate, as a cosine of these vectors."""
    if rules.near is None or rules == BARE:
        return replace(rules, near=None)
    return replace(rules, near=nearest.cosine(pool.vectors, NEAR) if rules.near == AUTO else rules.near or None)


def cost_model(project: Project) -> CostModel:
    """Fitted on the times that people took, a constant before there are any."""
    timed = list(label_log.lead_times(project.work / "labels"))
    names = project.active_classes
    counts = [[sum(d.label == name for d in label.defects) for name in names] for _, label in timed]
    return CostModel.fit([seconds for seconds, _ in timed], np.array(counts).reshape(len(timed), len(names)), names)


# --- which round ----------------------------------------------------------------------------------------------------


def _prepared(index: Index, built: BuiltPool, wish: SelectRequest, model: CostModel) -> SelectResult:
    """The manifest as far as it is known before the choice, with the key of everything that the choice depends on."""
    pool, seen = built.pool, sorted(built.seen.items())
    asked = asdict(wish) | {"options": dict(wish.options), "classes": list(wish.classes)}
    state = [(id, one.barred, one.split, one.group, one.stratum, sorted(one.present)) for id, one in seen]
    inputs = [
        asked,
        built.vectors.key,
        (built.scores, tables.size(Path(built.scores)) if built.scores else 0),
        state,
        list(pool.classes),
        pool.exemplars.ids,
        model.to_json(),
        __version__,
    ]
    manifest = {
        "round": pool.turn,
        "key": key_of(inputs),
        "strategy": wish.strategy,
        "seed": wish.seed,
        "asked": asked,
        "vectors": built.vectors.table.path,
        "scores": built.scores,
        "exemplars": [f"{id}:{tile}" for id, tile in zip(pool.exemplars.ids, pool.exemplars.tiles, strict=True)],
        "images": len(pool),
        "candidates": int(pool.candidates.sum()),
        "strata": _sizes(pool),
        "versions": {name: version(name) for name in ("numpy", "scikit-learn", "numba")} | {"curate": __version__},
        "made_at": label_log.now(),
        "made_by": label_log.me(),
        "pushed": None,
    }
    return SelectResult(manifest, [], list(built.notes))


def _number(index: Index, built: BuiltPool) -> int:
    """A round is replaced while nobody has touched it: not pushed, and none of its images labelled in the App."""
    newest = rounds.latest(index.project.work)
    if newest is None:
        return 1
    return newest.number + _touched(newest, built)


def _touched(newest: Round, built: BuiltPool) -> bool:
    seen = [built.seen[row["id"]].status for row in newest.picks() if row["id"] in built.seen]
    return newest.touched or any(status != "unlabelled" for status in seen)


def _same(project: Project, key: str) -> Round | None:
    newest = rounds.latest(project.work)
    return newest if newest and newest.manifest.get("key") == key else None


def _sizes(pool: Pool) -> dict[str, int]:
    names, sizes = np.unique(pool.strata[pool.population], return_counts=True)
    return {pool.stratum_names[name]: int(size) for name, size in zip(names, sizes, strict=True)}


# --- the choice -----------------------------------------------------------------------------------------------------


def _choose(
    built: BuiltPool, wish: SelectRequest, budget: ImageBudget | TimeBudget, model: CostModel, progress: Any
) -> Selection:
    pool = built.pool
    room = int(pool.candidates.sum())
    if not room:
        raise NothingToPick(_why_nothing(built))
    seconds = _seconds(pool, model)
    images = _images(budget, seconds[pool.candidates])
    for _ in range(TRIES):
        batch = _asked(built, wish, min(images, room), progress)
        spent = float(seconds[pool.rows_of([pick.id for pick in batch.picks])].sum())
        if not isinstance(budget, TimeBudget) or spent <= budget.seconds or images == 1:
            break
        images = max(1, int(len(batch.picks) * budget.seconds / spent))
    if images > room:
        asked = f"{images}" if isinstance(budget, ImageBudget) else f"{wish.budget}, about {images} images,"
        return batch._replace(notes=(f"the budget of {asked} is more than can be picked: {room}", *batch.notes))
    if isinstance(budget, TimeBudget) and spent > budget.seconds:
        return batch._replace(notes=(f"one image takes about {spent:.0f} s, more than {wish.budget}", *batch.notes))
    return batch


def _asked(built: BuiltPool, wish: SelectRequest, images: int, progress: Any) -> Selection:
    pool, done = replace(built.pool, memo={}), 0

    def advance(count: int) -> None:
        nonlocal done
        progress("choosing", count - done, images)
        done = count

    batch = selection.choose(pool, wish.strategy, images, wish.seed, wish.rules, wish.options, advance)
    return batch._replace(picks=selection.with_neighbourhood(pool, batch.picks))


def _images(budget: ImageBudget | TimeBudget, seconds: Floats) -> int:
    if isinstance(budget, ImageBudget):
        return budget.count
    return max(1, int(budget.seconds / max(float(seconds.mean()), 1e-9)))


def _seconds(pool: Pool, model: CostModel) -> Floats:
    """What each image will cost: with likely defects more than without."""
    likely, _ = _likely(pool)
    expected = np.zeros((len(pool), len(pool.classes)), np.float32) if likely is None else likely
    return np.asarray(model.seconds(expected))


def _likely(pool: Pool) -> tuple[Floats | None, str | None]:
    if "probability" in pool.scores:
        return np.nan_to_num(pool.scores["probability"]), "model"
    if linear_probe.known(pool):
        return np.nan_to_num(linear_probe.probabilities(pool)), "probe"
    return None, None


def _predicted(pool: Pool) -> dict[str, Any]:
    """Kept with the round: which images there were, and what was predicted of them, to see how that settles."""
    likely, _ = _likely(pool)
    known: dict[str, Any] = {"id": list(pool.ids)}
    if likely is None:
        return known
    return known | {rounds.column(name): likely[:, number] for number, name in enumerate(pool.classes)}


def _why_nothing(built: BuiltPool) -> str:
    """Why no image can be picked, and what to do about it."""
    real = [one for one in built.seen.values() if one.source != "synthetic"]
    counts = Counter(one.barred_as or "without vectors" for one in real)
    if set(counts) == {"labelled"}:
        remedy = "Learn from them: curate train. Whether selection would have beaten random on them: curate simulate"
        return f"nothing can be picked: all {len(real):,} images are labelled. {remedy}"
    if "without vectors" in counts:
        remedy = built.vectors.remedy
    elif build_pool.QUEUED in counts:
        remedy = "Fetch what annotators have labelled: curate pull"
    else:
        remedy = "Index further images (curate index), or learn from those that are labelled (curate train)"
    told = ", ".join(f"{count:,} {word}" for word, count in counts.most_common())
    return f"nothing can be picked: of {len(real):,} images {told}. {remedy}"


# --- the result -----------------------------------------------------------------------------------------------------


def _complete(chosen: SelectResult, built: BuiltPool, batch: Selection, model: CostModel, wish: SelectRequest) -> None:
    chosen.picks = _rows(built, batch.picks, model)
    chosen.notes += batch.notes
    predicted = Counter(name for row in chosen.picks for name in row["predicted"] or ["none"])
    chosen.manifest |= {
        "picked": len(batch.picks),
        "slots": dict(Counter(pick.slot for pick in batch.picks)),
        "by_stratum": dict(sorted(Counter(row["stratum"] for row in chosen.picks).items())),
        "by_predicted": dict(predicted.most_common()),
        "groups": len({row["group"] for row in chosen.picks}),
        "predicted_by": _likely(built.pool)[1],
        "near_duplicates": batch.near_duplicates,
        "seconds": round(sum(row["seconds"] for row in chosen.picks)),
        "cost_model": model.to_json(),
        "notes": chosen.notes,
    }


def _rows(built: BuiltPool, picks: Picks, model: CostModel) -> list[dict[str, Any]]:
    pool = built.pool
    rows = pool.rows_of([pick.id for pick in picks])
    likely, _ = _likely(pool)
    seconds = _seconds(pool, model)
    made = []
    for rank, (pick, row) in enumerate(zip(picks, rows.tolist(), strict=True), start=1):
        shown = None if likely is None else [pool.classes[i] for i in np.flatnonzero(likely[row] >= LIKELY)]
        seen = built.seen[pick.id]
        place = {"path": seen.path, "group": seen.group, "stratum": seen.stratum}
        made.append({"rank": rank, **asdict(pick), **place, "predicted": shown, "seconds": float(seconds[row])})
    return made


# --- explaining -----------------------------------------------------------------------------------------------------


def explain(project: Project, wish: SelectRequest, prefix: str) -> dict[str, Any]:
    """Why an image is in the newest round that holds it, or why it is in none."""
    index = Index(project)
    found = [id for id in index.ids() if id.startswith(prefix)]
    if len(found) != 1:
        raise CurateError(f"--explain '{prefix}' fits {len(found)} images; give a content id, or more of it")
    id = found[0]
    built = build_pool.build(index, wish.encoder, wish.exemplars, wish.classes)
    newest_first = reversed(rounds.every(project.work))
    picked = [row | {"round": one.number} for one in newest_first for row in one.picks() if row["id"] == id]
    about: dict[str, Any] = {"id": id, "path": built.seen[id].path, "picked": picked[0] if picked else None}
    about["barred"] = built.seen[id].barred
    about["rounds"] = len(rounds.every(project.work))
    if id in set(built.pool.ids):
        return about | _standing(built, id, picked)
    return about | {"barred": about["barred"] or "it has no vector, or one that is no number. Run: curate embed"}


def _standing(built: BuiltPool, id: str, picked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the image stands among the others: likelihoods, and what it is nearest to."""
    pool = built.pool
    row = int(pool.rows_of([id])[0])
    likely, by = _likely(pool)
    values = [] if likely is None else [round(float(value), 3) for value in likely[row]]
    return {
        "likely": dict(zip(pool.classes, values, strict=False)),
        "likely_by": by,
        "nearest_labelled": _nearest(pool, row, np.flatnonzero(pool.labelled)),
        "nearest_exemplar": _nearest(pool, row, pool.rows_of(pool.exemplars.ids)),
        "group": built.seen[id].group,
    }


def _nearest(pool: Pool, row: int, others: Rows) -> dict[str, Any] | None:
    others = others[others != row]
    if not len(others):
        return None
    similarity = pool.vectors[others] @ pool.vectors[row]
    best = int(similarity.argmax())
    return {"id": pool.ids[others[best]], "similarity": round(float(similarity[best]), 3)}
