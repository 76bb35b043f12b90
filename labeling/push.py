"""`curate push`: a round of picks, or a view under review, becomes tasks: one an image, in order, never doubled."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from curate.data import AUDIT, Label
from curate.errors import CurateError, LabelProblem, unknown
from curate.hashing import seeded_number
from curate.index import predictions, rounds, sync
from curate.index.dataset import Index
from curate.index.documents import ShownLabel
from curate.index.predictions import Prediction
from curate.index.rounds import Round
from curate.index.unusual import UnusualWindow
from curate.labels import log as label_log
from curate.labels.log import LabelLog
from curate.project import Project
from curate.select import anomaly_table
from labeling import config, images, remote_project, tabs, tasks
from labeling import results as ls_results
from labeling.client import Studio, Unanswered
from labeling.images import Address
from labeling.remote_project import MODEL_VERSION, LabelStudioProject
from labeling.tasks import LabelTask, ServerTask

BATCH = 250  # tasks sent in one request, which the server stores whole or not at all
ATTEMPTS = 3
CALM, PATIENCE = 2.0, 60.0  # seconds: after a time-out the server may still be storing what it got
UNUSUAL = 98.0  # per cent of the windows that must be less unusual for annotators to be told
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


def run(project: Project, studio: Studio, request: PushRequest, progress: Any = NO_PROGRESS) -> PushReport:
    """Make the server hold exactly one task for each image of the batch. The caller holds the writer lock."""
    if not project.active_classes:
        message = f"project '{project.name}' has no classes, so annotators would have nothing to choose"
        raise CurateError(f"{message}. Run: curate classes add NAME")
    index = Index(project)
    sync.capture_app_edits(index)
    batch = _review(index, request.view) if request.view else _picked(index, request.round)
    ls_project = remote_project.opened(project, studio, request.reset_config)
    report = PushReport(batch.name, ls_project.url, labelled=batch.labelled, notes=list(ls_project.notes))
    label_tasks = _label_tasks(index, ls_project, batch, request, report, progress)
    _hold(batch, label_tasks)  # before anything is sent: from now on no `select` may replace the round
    _send(ls_project, batch.name, label_tasks, report, progress)
    _mark(index, batch, label_tasks)
    tabs.show(ls_project, batch.name)
    images.sweep(index, ls_project)
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
    push_round = rounds.find(index.project.work, number)
    status = dict(index.rows("status"))
    picks = [row for row in push_round.picks() if row["id"] in status]
    waiting = [row for row in picks if status[row["id"]] in ("unlabelled", "queued", None)]
    if not picks:
        raise CurateError(f"none of the picks of {push_round.name} is in the index. Run: curate index")
    blind = any(row["slot"] == AUDIT for row in picks)
    return PushBatch(push_round.name, waiting, push_round, len(picks) - len(waiting), blind)


def _review(index: Index, view: str) -> PushBatch:
    """Labelled and disputed images of a saved view, for a second look at what stands there."""
    if view not in index.dataset.list_saved_views():
        raise unknown("view", view, index.dataset.list_saved_views())
    saved_view = index.dataset.load_saved_view(view)
    status, strata = dict(index.rows("status")), dict(index.rows("stratum"))
    ids = [id for id in saved_view.values("content_id") if status.get(id) in ("labelled", "disputed")]
    if not ids:
        raise CurateError(f"view '{view}' shows no labelled or disputed image, so there is nothing to look at again")
    blank = {"slot": REVIEW, "score": None, "reason": f"second look: {view}"}
    rows = [blank | {"id": id, "rank": rank, "stratum": strata[id]} for rank, id in enumerate(ids, start=1)]
    return PushBatch(f"{REVIEW} {view}", rows)


# --- tasks ------------------------------------------------------------------------------------------------------------


def _label_tasks(
    index: Index,
    ls_project: LabelStudioProject,
    batch: PushBatch,
    request: PushRequest,
    report: PushReport,
    progress: Any,
) -> list[LabelTask]:
    """The batch as tasks; the report lists images that cannot be sent."""
    ids = [row["id"] for row in batch.rows]
    shown = {image.id: image for image in index.shown(ids)}
    where = {id: (paths, missing) for id, paths, missing in index.rows("paths", "missing") if id in shown}
    predicted = _load_predictions(index, ids, request, report) if request.suggest and batch.round else {}
    unusual = _unusual_windows(index.project, ls_project, ids) if request.suggest and batch.round else {}
    address = images.addresser(index, ls_project, progress)
    versions = _versions(index.project) if batch.round is None else {}
    label_tasks = []
    for row in batch.rows:
        progress("preparing", 1, len(ids))
        image = shown[row["id"]]
        try:
            url = _url(address, image.id, *where[image.id])
        except LabelProblem as error:
            report.refused.append({"id": image.id, "reason": str(error)})
            continue
        try:
            suggested = (
                _reviewed(image, versions)
                if batch.round is None
                else _predicted(image, row, predicted, unusual, index.project)
            )
        except LabelProblem as error:
            report.dropped.append({"id": image.id, "reason": str(error)})
            suggested = TaskSuggestions()
        label_tasks.append(_task(batch, row, image, url, suggested))
    return label_tasks


def _load_predictions(
    index: Index, ids: Sequence[str], request: PushRequest, report: PushReport
) -> dict[str, Prediction]:
    if request.field != predictions.DEFECTS and index.dataset.get_field(request.field) is None:
        regions = index.dataset.get_field_schema(embedded_doc_type=index.fo.Detections)
        raise unknown("field", request.field, regions, "It must hold regions (fo.Detections)")
    loaded = dict(predictions.load(index, ids, request.field))
    if not loaded:
        report.notes.append("no model has seen these images, so nothing is suggested. To change that: curate predict")
    return loaded


def _unusual_windows(project: Project, ls_project: LabelStudioProject, ids: Sequence[str]) -> dict[str, UnusualWindow]:
    """The windows that annotators are told of; none where a config that was changed by hand cannot show them."""
    windows = anomaly_table.windows(project.work, ids)
    unusual = {id: window for id, window in windows.items() if window.box and window.percent >= UNUSUAL}
    if unusual and not config.shows_hints(remote_project.config_there(ls_project)):
        return {}
    return unusual


def _url(address: Address, id: str, paths: Sequence[str] | None, missing: bool) -> str:
    if missing or not paths:
        raise LabelProblem(f"the file of {id[:12]} is not on disk")
    return address(id, paths[0])


def _versions(project: Project) -> dict[str, tuple[tuple[str, Label], ...]]:
    """Return the other labels of each disputed image, each with the name of its source."""
    with closing(LabelLog(project.work / "labels", project.class_names)) as log:
        return {id: others for id in log.ids() if (others := log.state(id).others)}


class TaskSuggestions(NamedTuple):
    """Suggestions that a task starts from.

    `meaning`: digest of the label that the first one means. `hint`: place of the window that they point to.
    """

    suggestions: tuple[dict[str, Any], ...] = ()
    meaning: str | None = None
    by: str = ""
    hint: str = ""


def _reviewed(image: ShownLabel, versions: Mapping[str, tuple[tuple[str, Label], ...]]) -> TaskSuggestions:
    """Suggest the current label, and the other labels of a disputed image."""
    size = image.width, image.height
    labels = [image.label, *(label for _, label in versions.get(image.id, ()))]
    suggestions = tuple(_suggestion(ls_results.of_label(label, size), None) for label in labels)
    return TaskSuggestions(suggestions, _label_digest(suggestions[0]["result"], size), "label")


def _predicted(
    image: ShownLabel,
    row: Mapping[str, Any],
    predicted: Mapping[str, Prediction],
    unusual: Mapping[str, UnusualWindow],
    project: Project,
) -> TaskSuggestions:
    """Suggest the model's prediction and point to what is unusual; nothing for an audit pick: it must stay unbiased."""
    if row["slot"] == AUDIT:
        return TaskSuggestions()
    prediction, window = predicted.get(image.id, Prediction()), unusual.get(image.id)
    _check(prediction, image, project.class_names)
    size = image.width, image.height
    results = ls_results.of_prediction(prediction, size)
    meaning = _label_digest(results, size) if results else None
    hints = [ls_results.hint(window.box, size)] if window and window.box else []
    told = " ".join(map(str, window.box)) if window and window.box else ""
    if not results and not hints:
        return TaskSuggestions(by=prediction.by)
    suggestion = _suggestion([*hints, *results], prediction.score if results else None)
    return TaskSuggestions((suggestion,), meaning, prediction.by, told)


def _suggestion(results: list[dict[str, Any]], score: float | None) -> dict[str, Any]:
    return {"model_version": MODEL_VERSION, "result": results, **({} if score is None else {"score": round(score, 4)})}


def _label_digest(results: list[dict[str, Any]], size: tuple[int, int]) -> str:
    """Digest that tells later whether the suggestion was submitted unchanged."""
    return ls_results.label_in(results, size).digest


def _check(prediction: Prediction, image: ShownLabel, classes: Sequence[str]) -> None:
    """Label Studio takes any prediction, and its page breaks on a wrong one."""
    for name, confidence in [(defect.label, confidence) for defect, confidence in prediction.defects] + list(
        prediction.classes
    ):
        if name not in classes:
            raise LabelProblem(f"the model predicts '{name}', which is no class of this project")
        if not 0 <= confidence <= 1:
            raise LabelProblem(f"the model's confidence in '{name}' is {confidence}, not within 0 and 1")
    for defect, _ in prediction.defects:
        x, y, w, h = defect.box
        if not (x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= image.width + 0.01 and y + h <= image.height + 0.01):
            raise LabelProblem(f"the model's region of '{defect.label}' leaves the image: {defect.box}")


def _task(
    batch: PushBatch, row: Mapping[str, Any], image: ShownLabel, url: str, suggested: TaskSuggestions
) -> LabelTask:
    slot, reason, score = ("", "", None) if batch.blind else (row["slot"], row["reason"], row["score"])
    key = image.id if batch.round else f"{image.id}:{image.label.digest}"
    title = f"{batch.name}, {row['rank']} of {len(batch.rows) + batch.labelled}"
    data = {
        "image": url,
        "key": key,
        "content_id": image.id,
        "batch": batch.name,
        "round": batch.round.number if batch.round else None,
        "order": f"{batch.name} {row['rank']:06d}",
        "rank": row["rank"],
        "slot": slot,
        "stratum": row["stratum"] or "",
        "reason": reason,
        "score": None if score is None else round(score, 4),
        "title": f"{title}: {reason}" if reason else title,
        "base": base_of(image.label),
        "suggested": suggested.meaning,
        "suggested_by": suggested.by,
        "hint": suggested.hint,
    }
    return LabelTask(key, data, suggested.suggestions)


def base_of(label: Label) -> str:
    """Digest of the label when the task was made; a queued image counts as unlabelled."""
    return Label().digest if label.status == QUEUED else label.digest


# --- sending ----------------------------------------------------------------------------------------------------------


def _send(
    ls_project: LabelStudioProject, batch: str, label_tasks: Sequence[LabelTask], report: PushReport, progress: Any
) -> None:
    """Send only the tasks that the server lacks. Safe to run again after any failure."""
    wanted = {task.key: task for task in label_tasks}
    before = {held.key: held for held in tasks.held(ls_project, batch)}
    new = [task for task in label_tasks if task.key not in before]
    for part in _parts(new):
        _store(ls_project, batch, part)
        progress("pushing", len(part), len(new))
    report.created, report.existing = len(new), len(wanted.keys() & before.keys())
    alone = tasks.count(ls_project, batch) == len(before.keys() | wanted.keys())  # comparing each task takes a while
    report.doubles = 0 if alone else repair(ls_project, batch)
    report.updated = _update(ls_project, [(before[key], wanted[key]) for key in wanted.keys() & before.keys()])
    _overlap(ls_project, batch, wanted.keys())


def _parts(label_tasks: Sequence[LabelTask]) -> Iterator[list[LabelTask]]:
    for start in range(0, len(label_tasks), BATCH):
        yield list(label_tasks[start : start + BATCH])


def _store(ls_project: LabelStudioProject, batch: str, part: Sequence[LabelTask]) -> None:
    """Send once; where no answer comes, ask the server what it holds before anything is sent again."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ls_project.studio.post(f"/api/projects/{ls_project.id}/import", [task.to_json() for task in part])
            return
        except Unanswered:
            stored = _stored_keys(ls_project, batch)
            part = [task for task in part if task.key not in stored]
            if not part:
                return
            if attempt == ATTEMPTS:
                raise


def _stored_keys(ls_project: LabelStudioProject, batch: str) -> set[str]:
    """Wait until the server stores no further tasks, and return the keys of those that it holds."""
    until, known = time.monotonic() + PATIENCE, -1
    while True:
        keys = {held.key for held in tasks.held(ls_project, batch)}
        if len(keys) == known or time.monotonic() > until:
            return keys
        known = len(keys)
        time.sleep(CALM)


def repair(ls_project: LabelStudioProject, batch: str | None = None) -> int:
    """Delete doubles and return their number. Annotated tasks stay, else the oldest."""
    by_key: dict[str, list[int]] = {}
    for held in tasks.held(ls_project, batch):
        if "key" in held.data:
            by_key.setdefault(held.key, []).append(held.id)
    doubled = [sorted(ids) for ids in by_key.values() if len(ids) > 1]
    if not doubled:
        return 0
    free = tasks.untouched(ls_project, [id for ids in doubled for id in ids])
    spare = [id for ids in doubled for id in _spare(ids, free)]
    return len(tasks.delete(ls_project, spare))


def _spare(ids: Sequence[int], free: set[int]) -> list[int]:
    worked_on = [id for id in ids if id not in free]
    return [id for id in ids if id in free and (worked_on or id != ids[0])]


def _update(ls_project: LabelStudioProject, pairs: Iterable[tuple[ServerTask, LabelTask]]) -> int:
    """Update reasons, addresses or suggestions of tasks that nobody has begun; their place in the queue stays."""
    stale = {held.id: (held, task) for held, task in pairs if _compared_data(held.data) != _compared_data(task.data)}
    free = tasks.untouched(ls_project, stale)
    anew = [id for id in sorted(free) if _drawn(stale[id][0].data) != _drawn(stale[id][1].data)]
    if anew:
        tasks.drop_suggestions(ls_project, anew)
        suggestions = [{"task": id, **suggestion} for id in anew for suggestion in stale[id][1].suggestions]
        if suggestions:
            ls_project.studio.post(f"/api/projects/{ls_project.id}/import/predictions", suggestions)
    for id in sorted(free):  # last: the next push compares this data to find what an interrupted one left
        ls_project.studio.ask("PATCH", f"/api/tasks/{id}/", json={"data": stale[id][1].data})
    return len(free)


def _drawn(data: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a task's data tells of its suggestions; tasks of earlier versions have no hint."""
    return data.get("suggested"), data.get("hint") or ""


def _compared_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a task's data that is worth an update; the signature of an address is new each time."""
    return {name: data.get(name) for name in ("title", "reason", "slot", "base", "suggested", "suggested_by")} | {
        "hint": data.get("hint") or "",
        "image": str(data.get("image")).partition("?X-")[0],
    }


def _overlap(ls_project: LabelStudioProject, batch: str, keys: Collection[str]) -> None:
    """Let several people label a share of the round, drawn by content id."""
    settings = ls_project.project.config.labelstudio
    chosen = (
        {key for key in keys if seeded_number(0, "overlap", key) < settings.overlap * 2**64}
        if settings.overlap
        else set()
    )
    for held in tasks.held(ls_project, batch) if chosen else ():
        if held.key in chosen and held.overlap != settings.annotators:
            ls_project.studio.ask("PATCH", f"/api/tasks/{held.id}/", json={"overlap": settings.annotators})


# --- what the index shows ---------------------------------------------------------------------------------------------


def _hold(batch: PushBatch, label_tasks: Sequence[LabelTask]) -> None:
    if batch.round is not None and label_tasks:
        ids = {str(task.data["content_id"]) for task in label_tasks}
        kept = [id for id in batch.round.withdrawn if id not in ids]
        rounds.mark(batch.round, pushed=batch.round.manifest.get("pushed") or label_log.now(), withdrawn=kept)


def _mark(index: Index, batch: PushBatch, label_tasks: Sequence[LabelTask]) -> None:
    ids = {str(task.data["content_id"]) for task in label_tasks}
    waiting = [id for id, status in index.rows("status") if id in ids and status in ("unlabelled", None)]
    index.set({"status": dict.fromkeys(waiting, QUEUED)})
    if batch.round is None:
        index.tag(batch.name, sorted(ids))


# --- withdrawing ------------------------------------------------------------------------------------------------------


def withdraw(project: Project, studio: Studio, request: PushRequest) -> dict[str, Any]:
    """Take back the tasks of a batch that nobody has touched; their images may be picked again."""
    ls_project = remote_project.find(project, studio)
    if ls_project is None:
        raise CurateError(f"nothing of project '{project.name}' was pushed to {studio.url}")
    push_round = None if request.view else rounds.find(project.work, request.round)
    name = push_round.name if push_round else f"{REVIEW} {request.view}"
    there = {held.id: str(held.data.get("content_id")) for held in tasks.held(ls_project, name)}
    gone = tasks.delete(ls_project, list(there))
    _unmark(Index(project), push_round, name, left={there[id] for id in there.keys() - gone})
    return {"batch": name, "withdrawn": len(gone), "kept": len(there) - len(gone)}


def _unmark(index: Index, push_round: Round | None, name: str, left: set[str]) -> None:
    """Take images out of the queue, including those of an earlier withdrawal that was killed half-way."""
    if push_round is None:
        index.tag(name, sorted(id for id, tags in index.rows("tags") if name in tags and id not in left), on=False)
        return
    picks = {str(row["id"]) for row in push_round.picks()} - left
    queued = [id for id, status in index.rows("status") if id in picks and status == QUEUED]
    # The round first: what it holds as withdrawn may be picked again, what is queued may not.
    rounds.mark(
        push_round,
        withdrawn=sorted({*push_round.withdrawn, *queued}),
        pushed=push_round.manifest.get("pushed") if left else None,
    )
    index.set({"status": dict.fromkeys(queued, UNLABELLED)})
