"""`curate push`: a round of picks, or a view under review, becomes tasks: one an image, in order, never doubled."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from curate.data import AUDIT, Label
from curate.errors import CurateError, LabelProblem, unknown
from curate.index import predictions, rounds, sync
from curate.index.dataset import Index
from curate.index.documents import ShownLabel
from curate.index.predictions import Prediction
from curate.index.rounds import Round
from curate.labels import log as label_log
from curate.labels import splits
from curate.labels.log import LabelLog
from curate.project import Project
from labeling import images, tabs, tasks
from labeling import remote_project as desks
from labeling import results as wire
from labeling.client import Studio, Unanswered
from labeling.images import Address
from labeling.remote_project import MODEL_VERSION, LabelStudioProject
from labeling.tasks import LabelTask, ServerTask

BATCH = 250  # tasks sent in one request, which the server stores whole or not at all
ATTEMPTS = 3
CALM, PATIENCE = 2.0, 60.0  # seconds: after a time-out the server may still be storing what it got
UNLABELLED, QUEUED, REVIEW = "unlabelled", "queued", "review"
NO_PROGRESS: Callable[[str, int, int], None] = lambda stage, done, total: None  # noqa: E731


@dataclass(frozen=True)
class PushRequest:
    """Request to push a round (the newest unless numbered), or the images of a view for a second look."""

    round: int | None = None
    view: str | None = None
    field: str = predictions.DEFECTS
    suggest: bool = True
    reset_config: bool = False


@dataclass
class PushReport:
    """Counts of what became of each image. `labelled`: picks that have a label by now and need no task.

    `refused`: images that were not sent, `dropped`: those that were sent without a suggestion, each with the reason.
    """

    batch: str
    url: str
    created: int = 0
    existing: int = 0
    updated: int = 0
    labelled: int = 0
    doubles: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)
    dropped: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"refused": len(self.refused), "refusals": self.refused}


def run(project: Project, studio: Studio, wish: PushRequest, progress: Any = NO_PROGRESS) -> PushReport:
    """Make the server hold exactly one task for each image of the batch. The caller holds the writer lock."""
    if not project.active_classes:
        told = f"project '{project.name}' has no classes, so annotators would have nothing to choose"
        raise CurateError(f"{told}. Run: curate classes add NAME")
    index = Index(project)
    sync.capture_app_edits(index)
    batch = _review(index, wish.view) if wish.view else _picked(index, wish.round)
    desk = desks.opened(project, studio, wish.reset_config)
    report = PushReport(batch.name, desk.url, labelled=batch.labelled, notes=list(desk.notes))
    made = _made(index, desk, batch, wish, report, progress)
    _hold(batch, made)  # before anything is sent: from now on no `select` may replace the round
    _send(desk, batch.name, made, report, progress)
    _mark(index, batch, made)
    tabs.show(desk, batch.name)
    images.sweep(index, desk)
    return report


# --- what is wanted ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PushBatch:
    """The images to push, in order. `rows` hold id, rank, slot, score, reason and stratum.

    `blind`: nobody is told why an image was picked, so that audit picks look like all others.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    round: Round | None = None
    labelled: int = 0
    blind: bool = False


def _picked(index: Index, number: int | None) -> PushBatch:
    one = rounds.find(index.project.work, number)
    status = dict(index.rows("status"))
    picks = [row for row in one.picks() if row["id"] in status]
    waiting = [row for row in picks if status[row["id"]] in ("unlabelled", "queued", None)]
    if not picks:
        raise CurateError(f"none of the picks of {one.name} is in the index. Run: curate index")
    blind = any(row["slot"] == AUDIT for row in picks)
    return PushBatch(one.name, waiting, one, len(picks) - len(waiting), blind)


def _review(index: Index, view: str) -> PushBatch:
    """Labelled and disputed images of a saved view, for a second look at what stands there."""
    if view not in index.dataset.list_saved_views():
        raise unknown("view", view, index.dataset.list_saved_views())
    found = index.dataset.load_saved_view(view)
    status, strata = dict(index.rows("status")), dict(index.rows("stratum"))
    ids = [id for id in found.values("content_id") if status.get(id) in ("labelled", "disputed")]
    if not ids:
        raise CurateError(f"view '{view}' shows no labelled or disputed image, so there is nothing to look at again")
    blank = {"slot": REVIEW, "score": None, "reason": f"second look: {view}"}
    rows = [blank | {"id": id, "rank": rank, "stratum": strata[id]} for rank, id in enumerate(ids, start=1)]
    return PushBatch(f"{REVIEW} {view}", rows)


# --- tasks ------------------------------------------------------------------------------------------------------------


def _made(
    index: Index, desk: LabelStudioProject, batch: PushBatch, wish: PushRequest, report: PushReport, progress: Any
) -> list[LabelTask]:
    """The batch as tasks; what cannot be sent is told in the report."""
    ids = [row["id"] for row in batch.rows]
    shown = {one.id: one for one in index.shown(ids)}
    where = {id: (paths, missing) for id, paths, missing in index.rows("paths", "missing") if id in shown}
    said = _said(index, ids, wish, report) if wish.suggest and batch.round else {}
    address = images.addresser(index, desk, progress)
    book = _versions(index.project) if batch.round is None else {}
    made = []
    for row in batch.rows:
        progress("preparing", 1, len(ids))
        one = shown[row["id"]]
        try:
            url = _url(address, one.id, *where[one.id])
        except LabelProblem as error:
            report.refused.append({"id": one.id, "reason": str(error)})
            continue
        try:
            found = _reviewed(one, book) if batch.round is None else _predicted(one, row, said, index.project)
        except LabelProblem as error:
            report.dropped.append({"id": one.id, "reason": str(error)})
            found = TaskSuggestions()
        made.append(_task(batch, row, one, url, found))
    return made


def _said(index: Index, ids: Sequence[str], wish: PushRequest, report: PushReport) -> dict[str, Prediction]:
    if wish.field != predictions.DEFECTS and index.dataset.get_field(wish.field) is None:
        regions = index.dataset.get_field_schema(embedded_doc_type=index.fo.Detections)
        raise unknown("field", wish.field, regions, "It must hold regions (fo.Detections)")
    found = dict(predictions.load(index, ids, wish.field))
    if not found:
        report.notes.append("no model has seen these images, so nothing is suggested. To change that: curate predict")
    return found


def _url(address: Address, id: str, paths: Sequence[str] | None, missing: bool) -> str:
    if missing or not paths:
        raise LabelProblem(f"the file of {id[:12]} is not on disk")
    return address(id, paths[0])


def _versions(project: Project) -> dict[str, tuple[tuple[str, Label], ...]]:
    """Return the other labels of each disputed image, each with the name of its source."""
    with closing(LabelLog(project.work / "labels", project.class_names)) as book:
        return {id: found for id in book.ids() if (found := book.state(id).others)}


class TaskSuggestions(NamedTuple):
    """Suggestions that a task starts from; `meaning` is the digest of the label that the first one means."""

    suggestions: tuple[dict[str, Any], ...] = ()
    meaning: str | None = None
    by: str = ""


def _reviewed(one: ShownLabel, versions: Mapping[str, tuple[tuple[str, Label], ...]]) -> TaskSuggestions:
    """The label of today, and what else was said of a disputed image."""
    size = one.width, one.height
    labels_of_it = [one.label, *(label for _, label in versions.get(one.id, ()))]
    made = tuple(_suggestion(wire.of_label(label, size), None) for label in labels_of_it)
    return TaskSuggestions(made, _meant(made[0]["result"], size), "label")


def _predicted(
    one: ShownLabel, row: Mapping[str, Any], said: Mapping[str, Prediction], project: Project
) -> TaskSuggestions:
    """Suggest the model's prediction; nothing for an audit pick, which must stay unbiased."""
    found = None if row["slot"] == AUDIT else said.get(one.id)
    if found is None:
        return TaskSuggestions()
    _check(found, one, project.class_names)
    size = one.width, one.height
    results = wire.of_prediction(found, size)
    if not results:
        return TaskSuggestions(by=found.by)
    return TaskSuggestions((_suggestion(results, found.score),), _meant(results, size), found.by)


def _suggestion(results: list[dict[str, Any]], score: float | None) -> dict[str, Any]:
    return {"model_version": MODEL_VERSION, "result": results, **({} if score is None else {"score": round(score, 4)})}


def _meant(results: list[dict[str, Any]], size: tuple[int, int]) -> str:
    """To tell later whether it was submitted unchanged."""
    return wire.label_in(results, size).digest


def _check(said: Prediction, one: ShownLabel, classes: Sequence[str]) -> None:
    """Label Studio takes any prediction, and its page breaks on a wrong one."""
    for name, sure in [(defect.label, sure) for defect, sure in said.defects] + list(said.classes):
        if name not in classes:
            raise LabelProblem(f"the model predicts '{name}', which is no class of this project")
        if not 0 <= sure <= 1:
            raise LabelProblem(f"the model's confidence in '{name}' is {sure}, not within 0 and 1")
    for defect, _ in said.defects:
        x, y, w, h = defect.box
        if not (x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= one.width + 0.01 and y + h <= one.height + 0.01):
            raise LabelProblem(f"the model's region of '{defect.label}' leaves the image: {defect.box}")


def _task(batch: PushBatch, row: Mapping[str, Any], one: ShownLabel, url: str, found: TaskSuggestions) -> LabelTask:
    slot, reason, score = ("", "", None) if batch.blind else (row["slot"], row["reason"], row["score"])
    key = one.id if batch.round else f"{one.id}:{one.label.digest}"
    title = f"{batch.name}, {row['rank']} of {len(batch.rows) + batch.labelled}"
    data = {
        "image": url,
        "key": key,
        "content_id": one.id,
        "batch": batch.name,
        "round": batch.round.number if batch.round else None,
        "order": f"{batch.name} {row['rank']:06d}",
        "rank": row["rank"],
        "slot": slot,
        "stratum": row["stratum"] or "",
        "reason": reason,
        "score": None if score is None else round(score, 4),
        "title": f"{title}: {reason}" if reason else title,
        "base": base_of(one.label),
        "suggested": found.meaning,
        "suggested_by": found.by,
    }
    return LabelTask(key, data, found.suggestions)


def base_of(label: Label) -> str:
    """Digest of the label when the task was made; a queued image counts as unlabelled."""
    return Label().digest if label.status == QUEUED else label.digest


# --- sending ----------------------------------------------------------------------------------------------------------


def _send(desk: LabelStudioProject, batch: str, made: Sequence[LabelTask], report: PushReport, progress: Any) -> None:
    """Only what the server lacks. Whatever happens on the way, this may be run again."""
    wanted = {task.key: task for task in made}
    before = {one.key: one for one in tasks.held(desk, batch)}
    new = [task for task in made if task.key not in before]
    for part in _parts(new):
        _store(desk, batch, part)
        progress("pushing", len(part), len(new))
    report.created, report.existing = len(new), len(wanted.keys() & before.keys())
    alone = tasks.count(desk, batch) == len(before.keys() | wanted.keys())  # to look at each one takes a while
    report.doubles = 0 if alone else repair(desk, batch)
    report.updated = _update(desk, [(before[key], wanted[key]) for key in wanted.keys() & before.keys()])
    _overlap(desk, batch, wanted.keys())


def _parts(made: Sequence[LabelTask]) -> Iterator[list[LabelTask]]:
    for start in range(0, len(made), BATCH):
        yield list(made[start : start + BATCH])


def _store(desk: LabelStudioProject, batch: str, part: Sequence[LabelTask]) -> None:
    """Sent once; where no answer comes, the server is asked what it holds before anything is sent again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            desk.studio.post(f"/api/projects/{desk.id}/import", [task.to_json() for task in part])
            return
        except Unanswered:
            stored = _settled(desk, batch)
            part = [task for task in part if task.key not in stored]
            if not part:
                return
            if attempt == ATTEMPTS:
                raise


def _settled(desk: LabelStudioProject, batch: str) -> set[str]:
    """Wait until the server stores no further tasks, and return the keys of those that it holds."""
    until, known = time.monotonic() + PATIENCE, -1
    while True:
        found = {one.key for one in tasks.held(desk, batch)}
        if len(found) == known or time.monotonic() > until:
            return found
        known = len(found)
        time.sleep(CALM)


def repair(desk: LabelStudioProject, batch: str | None = None) -> int:
    """Delete doubles. Whoever is annotated stays, else the oldest; how many went."""
    by_key: dict[str, list[int]] = {}
    for one in tasks.held(desk, batch):
        if "key" in one.data:
            by_key.setdefault(one.key, []).append(one.id)
    doubled = [sorted(ids) for ids in by_key.values() if len(ids) > 1]
    if not doubled:
        return 0
    free = tasks.untouched(desk, [id for ids in doubled for id in ids])
    spare = [id for ids in doubled for id in _spare(ids, free)]
    return len(tasks.delete(desk, spare))


def _spare(ids: Sequence[int], free: set[int]) -> list[int]:
    worked_on = [id for id in ids if id not in free]
    return [id for id in ids if id in free and (worked_on or id != ids[0])]


def _update(desk: LabelStudioProject, pairs: Iterable[tuple[ServerTask, LabelTask]]) -> int:
    """New reasons, addresses or suggestions for tasks that nobody has begun; their place in the queue stays."""
    stale = {one.id: (one, task) for one, task in pairs if _stands(one.data) != _stands(task.data)}
    free = tasks.untouched(desk, stale)
    anew = [id for id in sorted(free) if stale[id][0].data.get("suggested") != stale[id][1].data["suggested"]]
    if anew:
        tasks.drop_suggestions(desk, anew)
        made = [{"task": id, **suggestion} for id in anew for suggestion in stale[id][1].suggestions]
        if made:
            desk.studio.post(f"/api/projects/{desk.id}/import/predictions", made)
    for id in sorted(free):  # last: by its data the next push tells what this one did not get to
        desk.studio.ask("PATCH", f"/api/tasks/{id}", json={"data": stale[id][1].data})
    return len(free)


def _stands(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a task's data that is worth an update; the signature of an address is new each time."""
    return {name: data.get(name) for name in ("title", "reason", "slot", "base", "suggested", "suggested_by")} | {
        "image": str(data.get("image")).partition("?X-")[0]
    }


def _overlap(desk: LabelStudioProject, batch: str, keys: Collection[str]) -> None:
    """A share of the round, drawn by content id, is labelled by several people."""
    wish = desk.project.config.labelstudio
    chosen = {key for key in keys if splits.draw(0, "overlap", key) < wish.overlap * 2**64} if wish.overlap else set()
    for one in tasks.held(desk, batch) if chosen else ():
        if one.key in chosen and one.overlap != wish.annotators:
            desk.studio.ask("PATCH", f"/api/tasks/{one.id}", json={"overlap": wish.annotators})


# --- what the index shows ---------------------------------------------------------------------------------------------


def _hold(batch: PushBatch, made: Sequence[LabelTask]) -> None:
    if batch.round is not None and made:
        ids = {str(task.data["content_id"]) for task in made}
        kept = [id for id in batch.round.withdrawn if id not in ids]
        rounds.mark(batch.round, pushed=batch.round.manifest.get("pushed") or label_log.now(), withdrawn=kept)


def _mark(index: Index, batch: PushBatch, made: Sequence[LabelTask]) -> None:
    ids = {str(task.data["content_id"]) for task in made}
    waiting = [id for id, status in index.rows("status") if id in ids and status in ("unlabelled", None)]
    index.set({"status": dict.fromkeys(waiting, QUEUED)})
    if batch.round is None:
        index.tag(batch.name, sorted(ids))


# --- withdrawing ------------------------------------------------------------------------------------------------------


def withdraw(project: Project, studio: Studio, wish: PushRequest) -> dict[str, Any]:
    """Take back the tasks of a batch that nobody has touched; their images may be picked again."""
    desk = desks.find(project, studio)
    if desk is None:
        raise CurateError(f"nothing of project '{project.name}' was pushed to {studio.url}")
    one = None if wish.view else rounds.find(project.work, wish.round)
    name = one.name if one else f"{REVIEW} {wish.view}"
    there = {held.id: str(held.data.get("content_id")) for held in tasks.held(desk, name)}
    gone = tasks.delete(desk, list(there))
    _unmark(Index(project), one, name, left={there[id] for id in there.keys() - gone})
    return {"batch": name, "withdrawn": len(gone), "kept": len(there) - len(gone)}


def _unmark(index: Index, one: Round | None, name: str, left: set[str]) -> None:
    """Take images out of the queue, including those of an earlier withdrawal that was killed half-way."""
    if one is None:
        index.tag(name, sorted(id for id, tags in index.rows("tags") if name in tags and id not in left), on=False)
        return
    picks = {str(row["id"]) for row in one.picks()} - left
    queued = [id for id, status in index.rows("status") if id in picks and status == QUEUED]
    # The round first: what it holds as withdrawn may be picked again, what is queued may not.
    rounds.mark(one, withdrawn=sorted({*one.withdrawn, *queued}), pushed=one.manifest.get("pushed") if left else None)
    index.set({"status": dict.fromkeys(queued, UNLABELLED)})
