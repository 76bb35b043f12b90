"""`curate select`: from a project and a budget to a round that is written, shown and explained."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np

from curate import __version__, state, tables, workers
from curate.catalogue import BUILT_IN
from curate.errors import CurateError
from curate.hashing import key_of
from curate.index import rounds, sync
from curate.index.dataset import Index
from curate.index.rounds import Round
from curate.labels import log as label_log
from curate.project import Project
from curate.select import anomaly_table, build_pool, cost, linear_probe
from curate.select import rules as selection_layer
from curate.select.build_pool import BuiltPool
from curate.select.cost import CostModel, ImageBudget, TimeBudget
from curate.select.pool import Floats, PastRound, Picks, Pool, Rows
from curate.select.rules import BARE, Quota, Selection, SelectionRules
from curate.strategies import CATALOGUE, DEFAULT
from curate.vectors import nearest
from curate.vectors import store as vectors

LIKELY = 0.5  # probability from which on an image counts as predicted to show a class
AUTO = -1.0  # as `near`: derive the cosine of near-duplicates from the vectors
NEAR = 0.15  # of the usual distance: low, because no pixels are compared
TRIES = 4  # to make a round fit a budget of time
NO_PROGRESS: Callable[[str, int, int], None] = lambda stage, done, total: None  # noqa: E731


class NothingToPick(CurateError):
    """No image can be picked: each is labelled, queued, or ineligible for another reason."""


@dataclass(frozen=True)
class SelectRequest:
    """A selection as the user asks for it; see `curate select --help`."""

    budget: str = "500"
    strategy: str = DEFAULT
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    exemplars: str | None = None
    classes: tuple[str, ...] = ()
    encoder: str | None = None
    rules: SelectionRules = field(default_factory=SelectionRules)


def request_of(
    project: Project,
    budget: str | int | None = None,
    strategy: str | None = None,
    *,
    options: Mapping[str, Any] | Sequence[str] = (),
    classes: Sequence[str] = (),
    exemplars: str | None = None,
    per_stratum: Quota | str | None = None,
    near: float | None = None,
    plain: bool = False,
    encoder: str | None = None,
    seed: int = 0,
) -> SelectRequest:
    """The request of a user; what is not given is as project.toml describes it.

    Args:
        project: the project.
        budget: images, or people's time such as `4h`.
        strategy: its name.
        options: of the strategy, by name or each as `key=value`; they go before those of project.toml.
        classes: only look for these.
        exemplars: a saved view, a tag, or content ids with commas between.
        per_stratum: the most picks from one stratum; `equal` or `proportional`.
        near: the cosine of near-duplicates; 0: never; None: derived from the vectors.
        plain: no rules on top of the strategy.
        encoder: whose vectors to use.
        seed: the same seed gives the same picks.

    Raises:
        CurateError: an unknown strategy or option, or a value that is not allowed.
    """
    config = project.config.select
    strategy = strategy or config.strategy
    given = dict(options) if isinstance(options, Mapping) else CATALOGUE.parse(strategy, options)
    CATALOGUE.check(strategy, given)
    if near is not None and not 0 <= near <= 1:
        raise CurateError(f"near is {near:g}; allowed: a cosine from 0 to 1")
    rules = SelectionRules(
        near=AUTO if near is None else near,
        per_stratum=_quota(config.per_stratum if per_stratum is None else per_stratum),
    )
    return SelectRequest(
        budget=str(budget or config.budget),
        strategy=strategy,
        seed=seed,
        options=(dict(config.options) if strategy == config.strategy else {}) | given,
        exemplars=exemplars,
        classes=tuple(classes),
        encoder=encoder,
        rules=BARE if plain else rules,
    )


def _quota(value: Any) -> Quota | None:
    if value is None or value in ("equal", "proportional"):
        return cast(Quota | None, value)
    text = str(value)
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise CurateError(f"--per-stratum '{value}'; allowed: a number above 0, 'equal' or 'proportional'")


@dataclass
class SelectResult:
    """A round and its picks. `written` is None after a dry run; `fresh` is false where the newest round is the same."""

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
            "shares": self.manifest.get("shares", {}),
            "notes": self.notes,
            "written": self.written is not None and self.fresh,
        }


def run(project: Project, request: SelectRequest, progress: Any = NO_PROGRESS, *, dry: bool = False) -> SelectResult:
    """Pick images, and unless `dry` write the round; the caller must hold the writer lock then.

    Args:
        project: the project.
        request: what to select; see `request_of`.
        progress: called with a stage, the steps done since the last call and all steps.
        dry: pick, but write nothing.

    Raises:
        NothingToPick: no image can be picked.
        CurateError: vectors, labels or exemplars that the strategy needs are missing.
    """
    start = time.perf_counter()
    CATALOGUE.load(request.strategy)
    budget = cost.parse_budget(request.budget)
    if "dataset" in state.recorded(project):  # else opening the index says what is missing
        vectors.open_latest(project.work, request.encoder)  # fails before the database is started
    index = Index(project)
    if not dry:
        sync.capture_app_edits(index)
    progress("reading vectors", 0, 1)
    built = build_pool.build(index, request.encoder, request.exemplars, request.classes)
    progress("reading vectors", 1, 1)
    model = cost_model(project)
    request = replace(request, rules=with_cosine(request.rules, built.pool))
    turn = _number(index, built)
    built.pool = replace(built.pool, turn=turn, past=_past(project, built.pool, turn))
    result = _prepared(index, built, request, model)
    if not dry and (same := _same(project, result.manifest["key"])):
        rounds.show(index)
        picks = [row | {"path": built.images[row["id"]].path} for row in same.picks()]  # the project may have moved
        return SelectResult(same.manifest, picks, result.notes, same, fresh=False)
    selection = _choose(built, request, budget, model, progress)
    _complete(result, built, selection, model)
    result.manifest["took"] = round(time.perf_counter() - start, 1)
    if not dry:
        newest = rounds.latest(project.work)
        if newest and newest.number < result.manifest["round"] and not newest.touched:
            rounds.mark(newest, touched=label_log.now())  # labelled in the App: never replaced from now on
        anomaly_table.keep(index, built)
        result.written = rounds.write(project.work, result.manifest, result.picks, _predicted(built.pool))
        rounds.show(index)
    return result


def with_cosine(rules: SelectionRules, pool: Pool) -> SelectionRules:
    """The rules with `near` as a cosine of these vectors."""
    if rules.near is None or rules == BARE:
        return replace(rules, near=None)
    return replace(rules, near=nearest.cosine_at(pool.vectors, NEAR) if rules.near == AUTO else rules.near or None)


def cost_model(project: Project) -> CostModel:
    """The cost model, fitted on lead times; a constant while there are none."""
    lead_times = list(label_log.lead_times(project.work / "labels"))
    names = project.active_classes
    counts = [[sum(d.label == name for d in label.defects) for name in names] for _, label in lead_times]
    regions = np.array(counts).reshape(len(lead_times), len(names))
    return CostModel.fit([seconds for seconds, _ in lead_times], regions, names)


# --- which round ----------------------------------------------------------------------------------------------------


def _prepared(index: Index, built: BuiltPool, request: SelectRequest, model: CostModel) -> SelectResult:
    """The manifest before the choice, with a key of everything that the choice depends on."""
    pool, images = built.pool, sorted(built.images.items())
    asked = asdict(request) | {"options": dict(request.options), "classes": list(request.classes)}
    state = [
        (id, image.ineligible, image.split, image.group, image.stratum, sorted(image.present)) for id, image in images
    ]
    inputs = [
        asked,
        built.vectors.key,
        (built.scores, tables.size(Path(built.scores)) if built.scores else 0),
        state,
        list(pool.classes),
        pool.exemplars.ids,
        model.to_json(),
        __version__,
        *([origin] if (origin := CATALOGUE.origin(request.strategy)) != BUILT_IN else []),
        *([[(past.number, past.slots)] for past in pool.past]),
    ]
    manifest = {
        "round": pool.turn,
        "key": key_of(inputs),
        "strategy": request.strategy,
        "seed": request.seed,
        "asked": asked,
        "vectors": built.vectors.table.path,
        "scores": built.scores,
        "exemplars": [f"{id}:{tile}" for id, tile in zip(pool.exemplars.ids, pool.exemplars.tiles, strict=True)],
        "images": len(pool),
        "candidates": int(pool.candidates.sum()),
        "strata": _sizes(pool),
        "versions": {name: version(name) for name in ("numpy", "scikit-learn", "numba")} | {"curate": __version__},
        "made_at": label_log.now(),
        "made_by": label_log.user_name(),
        "pushed": None,
    }
    return SelectResult(manifest, [], list(built.notes))


def _number(index: Index, built: BuiltPool) -> int:
    """The new round's number. The newest round is replaced unless it was pushed or an image of it was labelled."""
    newest = rounds.latest(index.project.work)
    if newest is None:
        return 1
    return newest.number + _touched(newest, built)


def _past(project: Project, pool: Pool, turn: int) -> tuple[PastRound, ...]:
    """Return the picks of the rounds before this one, of the images that the pool holds."""
    row_of = {id: row for row, id in enumerate(pool.ids)}
    past = []
    for round_ in rounds.every(project.work):
        if round_.number < turn:
            picks = [(row_of[pick["id"]], pick["slot"]) for pick in round_.picks() if pick["id"] in row_of]
            rows = np.array([row for row, _ in picks], np.int64)
            past.append(PastRound(round_.number, rows, tuple(slot for _, slot in picks)))
    return tuple(past)


def _touched(newest: Round, built: BuiltPool) -> bool:
    statuses = [built.images[row["id"]].status for row in newest.picks() if row["id"] in built.images]
    """Return True if a round stays: people work on it, or have edited it by hand."""
    return newest.touched or "edited_by" in newest.manifest or any(status != "unlabelled" for status in statuses)


def _same(project: Project, key: str) -> Round | None:
    newest = rounds.latest(project.work)
    return newest if newest and newest.manifest.get("key") == key else None


def _sizes(pool: Pool) -> dict[str, int]:
    names, sizes = np.unique(pool.strata[pool.population], return_counts=True)
    return {pool.stratum_names[name]: int(size) for name, size in zip(names, sizes, strict=True)}


# --- the choice -----------------------------------------------------------------------------------------------------


def _choose(
    built: BuiltPool, request: SelectRequest, budget: ImageBudget | TimeBudget, model: CostModel, progress: Any
) -> Selection:
    workers.reuse_freed_memory()
    pool = built.pool
    candidates = int(pool.candidates.sum())
    if not candidates:
        raise NothingToPick(_why_nothing(built))
    seconds = labelling_seconds(pool, model)
    images = _images(budget, seconds[pool.candidates])
    if isinstance(budget, TimeBudget):
        built.pool = replace(pool, effort=cost.effort(seconds, pool.candidates))
    for _ in range(TRIES):
        selection = _selected(built, request, min(images, candidates), progress)
        expected = float(seconds[pool.rows_of([pick.id for pick in selection.picks])].sum())
        if not isinstance(budget, TimeBudget) or expected <= budget.seconds or images == 1:
            break
        images = max(1, int(len(selection.picks) * budget.seconds / expected))
    if images > candidates:
        asked = f"{images}" if isinstance(budget, ImageBudget) else f"{request.budget}, about {images} images,"
        note = f"the budget of {asked} is more than can be picked: {candidates}"
        return selection._replace(notes=(note, *selection.notes))
    if isinstance(budget, TimeBudget) and expected > budget.seconds:
        note = f"one image takes about {expected:.0f} s, more than {request.budget}"
        return selection._replace(notes=(note, *selection.notes))
    return selection


def _selected(built: BuiltPool, request: SelectRequest, images: int, progress: Any) -> Selection:
    pool, done = replace(built.pool, memo={}), 0

    def advance(count: int) -> None:
        nonlocal done
        progress("choosing", count - done, images)
        done = count

    strategy, rules = request.strategy, request.rules
    chosen = selection_layer.choose(pool, strategy, images, request.seed, rules, request.options, advance)
    return chosen._replace(picks=selection_layer.with_neighbourhood(pool, chosen.picks))


def _images(budget: ImageBudget | TimeBudget, seconds: Floats) -> int:
    if isinstance(budget, ImageBudget):
        return budget.count
    return max(1, int(budget.seconds / max(float(seconds.mean()), 1e-9)))


def labelling_seconds(pool: Pool, model: CostModel) -> Floats:
    """Seconds that each image is expected to take: more with likely defects than without."""
    likely, _ = _likely(pool)
    expected = np.zeros((len(pool), len(pool.classes)), np.float32) if likely is None else likely
    return np.asarray(model.seconds(expected))


def _likely(pool: Pool) -> tuple[Floats | None, str | None]:
    """Probabilities (n, classes), and whether a model or a probe gives them; None where neither can."""
    if "probability" in pool.scores:
        return np.nan_to_num(pool.scores["probability"]), "model"
    if linear_probe.has_classes(pool):
        return np.nan_to_num(linear_probe.probabilities(pool)), "probe"
    return None, None


def _predicted(pool: Pool) -> dict[str, Any]:
    """The table kept with the round: its images and their predictions, from which `curate stop-check` reads changes."""
    likely, _ = _likely(pool)
    known: dict[str, Any] = {"id": list(pool.ids)}
    if likely is None:
        return known
    return known | {rounds.class_column(name): likely[:, number] for number, name in enumerate(pool.classes)}


def _why_nothing(built: BuiltPool) -> str:
    """Why no image can be picked, and what to do about it."""
    real = [image for image in built.images.values() if image.source != "synthetic"]
    counts = Counter(image.ineligible_as or "without vectors" for image in real)
    if set(counts) == {"labelled"}:
        remedy = "Learn from them: curate train. Whether selection would have beaten random on them: curate simulate"
        return f"nothing can be picked: all {len(real):,} images are labelled. {remedy}"
    if "without vectors" in counts:
        remedy = built.vectors.remedy
    elif build_pool.QUEUED in counts:
        remedy = "Fetch what annotators have labelled: curate pull"
    else:
        remedy = "Index further images (curate index), or learn from those that are labelled (curate train)"
    listed = ", ".join(f"{count:,} {word}" for word, count in counts.most_common())
    return f"nothing can be picked: of {len(real):,} images {listed}. {remedy}"


# --- the result -----------------------------------------------------------------------------------------------------


def _complete(result: SelectResult, built: BuiltPool, selection: Selection, model: CostModel) -> None:
    result.picks = _rows(built, selection.picks, model)
    result.notes += selection.notes
    predicted = Counter(name for row in result.picks for name in row["predicted"] or ["none"])
    result.manifest |= {
        "picked": len(selection.picks),
        "slots": dict(Counter(pick.slot for pick in selection.picks)),
        "shares": dict(selection.shares),
        "by_stratum": dict(sorted(Counter(row["stratum"] for row in result.picks).items())),
        "by_predicted": dict(predicted.most_common()),
        "groups": len({row["group"] for row in result.picks}),
        "predicted_by": _likely(built.pool)[1],
        "learnt_from": _learnt_from(built),
        "near_duplicates": selection.near_duplicates,
        "seconds": round(sum(row["seconds"] for row in result.picks)),
        "cost_model": model.to_json(),
        "notes": result.notes,
    }


def _learnt_from(built: BuiltPool) -> str:
    """Return a key of what the linear probe's predictions depend on: vectors, labels and classes."""
    pool = built.pool
    shown = pool.present.astype(bool) & pool.trainable[:, None]
    learnt = np.packbits(np.column_stack([pool.trainable, shown]))
    return key_of([built.vectors.key, list(pool.ids), list(pool.classes), learnt.tobytes().hex(), __version__])[:16]


def _recall_probe(project: Project, built: BuiltPool) -> None:
    """Take the probe's predictions from the newest round if nothing has changed since: fitting it takes seconds."""
    newest, pool = rounds.latest(project.work), built.pool
    if newest is None or newest.manifest.get("predicted_by") != "probe" or "probability" in pool.scores:
        return
    if newest.manifest.get("learnt_from") == _learnt_from(built):
        ids, values, classes = newest.predicted()
        if tuple(ids) == pool.ids and tuple(classes) == pool.classes:
            pool.memo["probe"] = values


def _rows(built: BuiltPool, picks: Picks, model: CostModel) -> list[dict[str, Any]]:
    pool = built.pool
    rows = pool.rows_of([pick.id for pick in picks])
    likely, _ = _likely(pool)
    seconds = labelling_seconds(pool, model)
    entries = []
    for rank, (pick, row) in enumerate(zip(picks, rows.tolist(), strict=True), start=1):
        predicted = None if likely is None else [pool.classes[i] for i in np.flatnonzero(likely[row] >= LIKELY)]
        image = built.images[pick.id]
        place = {"path": image.path, "group": image.group, "stratum": image.stratum}
        entries.append({"rank": rank, **asdict(pick), **place, "predicted": predicted, "seconds": float(seconds[row])})
    return entries


# --- explaining -----------------------------------------------------------------------------------------------------


def explain(project: Project, request: SelectRequest, prefix: str) -> dict[str, Any]:
    """Explain why an image is in the newest round that holds it, or why it is in none.

    Args:
        project: the project.
        request: names the vectors, exemplars and classes to compare with.
        prefix: the image's content id, or its first characters.

    Returns:
        The picked row or None, the reason why it cannot be picked now, and how it compares with labelled images.
    """
    index = Index(project)
    matches = [id for id in index.ids() if id.startswith(prefix)]
    if len(matches) != 1:
        raise CurateError(f"--explain '{prefix}' fits {len(matches)} images; give a content id, or more of it")
    id = matches[0]
    built = build_pool.build(index, request.encoder, request.exemplars, request.classes, windows=False)
    _recall_probe(project, built)
    newest_first = reversed(rounds.every(project.work))
    picked = [row | {"round": round_.number} for round_ in newest_first for row in round_.picks() if row["id"] == id]
    about: dict[str, Any] = {"id": id, "path": built.images[id].path, "picked": picked[0] if picked else None}
    about["barred"] = built.images[id].ineligible
    about["rounds"] = len(rounds.every(project.work))
    if id in set(built.pool.ids):
        return about | _comparison(built, id, picked)
    return about | {"barred": about["barred"] or "it has no vector, or one that is no number. Run: curate embed"}


def _comparison(built: BuiltPool, id: str, picked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the image with others: its class probabilities, and the nearest labelled image and exemplar."""
    pool = built.pool
    row = int(pool.rows_of([id])[0])
    likely, by = _likely(pool)
    values = [] if likely is None else [round(float(value), 3) for value in likely[row]]
    return {
        "likely": dict(zip(pool.classes, values, strict=False)),
        "likely_by": by,
        "nearest_labelled": _nearest(pool, row, np.flatnonzero(pool.labelled)),
        "nearest_exemplar": _nearest(pool, row, pool.rows_of(pool.exemplars.ids)),
        "group": built.images[id].group,
    }


def _nearest(pool: Pool, row: int, others: Rows) -> dict[str, Any] | None:
    others = others[others != row]
    if not len(others):
        return None
    similarity = pool.vectors[others] @ pool.vectors[row]
    best = int(similarity.argmax())
    return {"id": pool.ids[others[best]], "similarity": round(float(similarity[best]), 3)}
