"""`curate pull`: what people did in Label Studio, into the label log and the index; safe to repeat at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from curate.data import Label
from curate.errors import CurateError
from curate.index import app_edits, rounds, sync
from curate.index.dataset import Index, chunks
from curate.index.rounds import Round
from curate.labels.log import LabelLog, LabelState
from curate.project import Project
from labeling import consensus, remote_project, results, tasks
from labeling.annotations import Annotation, Size
from labeling.client import Studio
from labeling.consensus import EDITED_IN_APP, LoggedAnnotations, ReturnedTask, SettledTask
from labeling.push import QUEUED, UNLABELLED
from labeling.remote_project import LabelStudioProject

OVERLAP = timedelta(minutes=2)  # asked for again: a change may be stored later than its timestamp
PAGE = 250
# Of tasks and, by the server's way of reading this list, of the annotations in them.
FIELDS = "id,data,created_at,updated_at,annotations,completed_by,was_cancelled,lead_time,parent_prediction,result"
NO_PROGRESS: Callable[[str, int, int], None] = lambda stage, done, total: None  # noqa: E731


@dataclass
class PullReport:
    """Counts of what a pull fetched. `annotations`: new ones; `images`: those whose label they settle."""

    url: str
    annotations: int = 0
    images: int = 0
    labelled: int = 0
    skipped: int = 0
    disputed: int = 0
    edited_in_app: int = 0
    deleted: int = 0
    drafts: int = 0
    strangers: int = 0
    captured: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def add(self, settled: SettledTask, label: Label) -> None:
        self.annotations += settled.fresh
        self.deleted += settled.gone
        self.images += 1
        self.labelled += label.status == "labelled"
        self.skipped += label.status == "skipped"
        self.disputed += label.status == "disputed"
        self.edited_in_app += label.reason == EDITED_IN_APP


def run(project: Project, studio: Studio, full: bool = False, progress: Any = NO_PROGRESS) -> PullReport:
    """Fetch what changed since the last pull, or with `full` everything. The caller holds the writer lock."""
    ls_project = remote_project.find(project, studio)
    if ls_project is None:
        raise CurateError(
            f"nothing of project '{project.name}' is on {studio.url}, or it was deleted there (labels that were "
            "pulled are safe). To make it: curate push"
        )
    index = Index(project)
    report = PullReport(ls_project.url)
    with app_edits.opened_log(index) as (log, edited):
        report.captured = len(edited)
        cursor = _pull(index, log, ls_project, None if full else ls_project.cursor, report, progress)
    sync.assign_splits(index)
    if cursor != ls_project.cursor:
        ls_project.save(cursor=cursor)
    report.drafts = tasks.drafts(ls_project)
    return report


def rebuild(project: Project) -> dict[str, int]:
    """Show every label anew from the log; edits of the App are captured first. Count what changed (nothing should)."""
    index = Index(project)
    ids = index.ids()
    before = {image.id: image.label.digest for image in index.shown(ids)}
    with closing(LabelLog(project.work / "labels", project.class_names)) as log:
        captured = app_edits.show(index, log, ids, project.class_names)
        known = sum(1 for _ in log.ids())
    after = {image.id: image.label.digest for image in index.shown(ids)}
    changed = [id for id in ids if before[id] != after[id] and id not in set(captured)]
    _queue(index, [id for push_round in rounds.every(project.work) if push_round.pushed for id in _sent(push_round)])
    return {"images": len(ids), "logged": known, "captured": len(captured), "changed": len(changed)}


def _sent(push_round: Round) -> set[str]:
    """The picks that annotators have in their queue, or had."""
    return {str(row["id"]) for row in push_round.picks()} - set(push_round.withdrawn)


def _pull(
    index: Index, log: LabelLog, ls_project: LabelStudioProject, cursor: str | None, report: PullReport, progress: Any
) -> str | None:
    """Write page by page to log and index; return the newest change on the server before the first page was read.

    Annotations submitted on a page that was read already come with the next pull, however long the other pages take.
    """
    newest = tasks.newest(ls_project)
    known, sizes = LoggedAnnotations.of(log), _sizes(index)
    people: dict[int, str] = {}
    for page in chunks(_changed(ls_project, cursor), PAGE):
        progress("pulling", len(page), 0)
        people = people if _all_known(page, people) else people_on(ls_project)
        returned = [task_of(ls_project, task, sizes[id], people) for task in page if (id := _image_of(task)) in sizes]
        report.strangers += len(page) - len(returned)
        settle_all(index, log, known, returned, report)
    return newest


def _image_of(task: Mapping[str, Any]) -> str:
    """Content id in a task's data; tasks that we did not make may hold any value there."""
    return str(task["data"].get("content_id"))


def settle_all(
    index: Index, log: LabelLog, known: LoggedAnnotations, returned: list[ReturnedTask], report: PullReport
) -> None:
    """Log what is new and show it; the log is on disk before the index is touched."""
    settled = _settle(index.project, log, known, [task for task in returned if not known.holds(task)])
    touched = log.append_all([task.entries for task in settled])
    for task in settled:
        report.add(task, touched[task.id].label)
    app_edits.show(index, log, touched.keys() | _behind(index, log, returned), index.project.class_names)
    _queue(index, [task.id for task in returned if not task.annotations])


def _settle(
    project: Project, log: LabelLog, known: LoggedAnnotations, changed: list[ReturnedTask]
) -> list[SettledTask]:
    """Settle tasks in order: an image that two of them show has the label of the first when the second is settled."""
    deserted = {task.id for task in changed if known.is_deserted(task)}
    histories = log.histories(deserted) if deserted else {}
    states, settled = log.states({task.id for task in changed}), []
    for task in changed:
        earlier = (histories[task.id], log.import_state(task.id).label) if task.id in deserted else ()
        result = consensus.settle(known, task, states[task.id], project.config.labelstudio.agreement, *earlier)
        if result is not None:
            settled.append(result)
            states |= {entry.id: LabelState(entry.label, entry) for entry in result.entries}
    return settled


def _behind(index: Index, log: LabelLog, returned: Iterable[ReturnedTask]) -> set[str]:
    """Images whose label is in the log alone: a pull was killed before it could show them."""
    shown = list(index.documents([task.id for task in returned], ("content_id", "state_key")))
    keys = log.keys([document["content_id"] for document in shown])
    return {id for document in shown if keys[id := document["content_id"]] != (document.get("state_key") or "")}


def _queue(index: Index, ids: Sequence[str]) -> None:
    """Mark unlabelled images as queued."""
    shown = index.documents(ids, ("content_id", "status"))
    index.set(
        {
            "status": {
                document["content_id"]: QUEUED for document in shown if document.get("status") in (None, UNLABELLED)
            }
        }
    )


def _changed(ls_project: LabelStudioProject, cursor: str | None) -> Iterator[dict[str, Any]]:
    since = [tasks.after("updated_at", _earlier(cursor))] if cursor else []
    return tasks.listed(ls_project, since, "all", FIELDS, PAGE)


def _earlier(moment: str) -> str:
    return (datetime.fromisoformat(moment) - OVERLAP).isoformat().replace("+00:00", "Z")


def _sizes(index: Index) -> dict[str, tuple[int, int]]:
    return {id: (width, height) for id, width, height in index.rows("width", "height")}


def _all_known(page: Iterable[Mapping[str, Any]], people: Mapping[int, str]) -> bool:
    return all(annotation["completed_by"] in people for task in page for annotation in task["annotations"])


def people_on(ls_project: LabelStudioProject) -> dict[int, str]:
    return {int(user["id"]): str(user["email"]) for user in ls_project.studio.get("/api/users/")}


# --- from the server's annotations to ours ----------------------------------------------------------------------------


def task_of(
    ls_project: LabelStudioProject,
    task: Mapping[str, Any],
    size: Size,
    people: Mapping[int, str],
    names: Mapping[str, str] | None = None,
) -> ReturnedTask:
    """Return a task of the server with its annotations read.

    Args:
        ls_project: Where it comes from.
        task: The task, as the server lists it.
        size: Width and height of its image.
        people: Emails of the annotators, by their number on the server.
        names: What a class of theirs is called here; ours may have been renamed.
    """
    classes = ls_project.project.class_names
    names = {old: new for old, new in ls_project.project.config.aliases.items() if old not in classes} | {
        **(names or {})
    }
    data, uid = task["data"], f"{task['id']}@{task['created_at']}"
    annotations = []
    for answer in task["annotations"]:
        label = results.label_in(answer["result"], size, bool(answer["was_cancelled"]), names, classes)
        annotations.append(
            Annotation(
                data["content_id"],
                people.get(answer["completed_by"], f"user {answer['completed_by']}"),
                label,
                size,
                answer["updated_at"],
                answer.get("lead_time"),
                _origin(answer, label, data),
                data.get("round") or None,
                data.get("suggested_by") or None,
                ls_project.config,
                f"{answer['id']}@{answer['created_at']}",
                uid,
            )
        )
    return ReturnedTask(uid, data["content_id"], size, annotations, data.get("base"))


def _origin(answer: Mapping[str, Any], label: Label, data: Mapping[str, Any]) -> str:
    """`prediction`: a suggestion that was submitted as it was; `changed`: one that was worked on; else `manual`.

    A hint suggests nothing: what is drawn beside it is a person's own.
    """
    if answer.get("parent_prediction") is None:
        return "manual"
    if data.get("suggested") is not None:
        return "prediction" if label.digest == data["suggested"] else "changed"
    parts = [part for part in answer["result"] or () if not results.is_hint(part)]
    origins = [part.get("origin") if isinstance(part, dict) else None for part in parts]
    if data.get("hint") and not any(str(origin).startswith("prediction") for origin in origins):
        return "manual"
    kept = all(origin == "prediction" for origin in origins)
    return "prediction" if kept else "changed"  # of a suggestion that was made while the task was open
