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
from curate.labels.log import LabelLog
from curate.project import Project
from labeling import consensus, results, tasks
from labeling import remote_project as desks
from labeling.client import Studio
from labeling.consensus import EDITED_IN_APP, LoggedAnnotations, ReturnedAnnotation, ReturnedTask, SettledTask
from labeling.push import QUEUED, UNLABELLED
from labeling.remote_project import LabelStudioProject

OVERLAP = timedelta(minutes=2)  # asked for again: a change may be stored later than its own time says
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

    def add(self, found: SettledTask) -> None:
        self.annotations += found.fresh
        self.deleted += found.gone
        self.images += 1
        self.labelled += found.label.status == "labelled"
        self.skipped += found.label.status == "skipped"
        self.disputed += found.label.status == "disputed"
        self.edited_in_app += found.label.reason == EDITED_IN_APP


def run(project: Project, studio: Studio, full: bool = False, progress: Any = NO_PROGRESS) -> PullReport:
    """Fetch what changed since the last pull, or with `full` everything. The caller holds the writer lock."""
    desk = desks.find(project, studio)
    if desk is None:
        raise CurateError(
            f"nothing of project '{project.name}' is on {studio.url}, or it was deleted there (labels that were "
            "pulled are safe). To make it: curate push"
        )
    index = Index(project)
    report = PullReport(desk.url)
    with app_edits.opened_log(index) as (book, edited):
        report.captured = len(edited)
        cursor = _pull(index, book, desk, None if full else desk.cursor, report, progress)
    sync.give_splits(index)
    if cursor != desk.cursor:
        desk.save(cursor=cursor)
    report.drafts = tasks.drafts(desk)
    return report


def rebuild(project: Project) -> dict[str, int]:
    """Show every label anew from the log; edits of the App are captured first. What changed by it (nothing should)."""
    index = Index(project)
    ids = index.ids()
    before = {one.id: one.label.digest for one in index.shown(ids)}
    with closing(LabelLog(project.work / "labels", project.class_names)) as book:
        captured = app_edits.show(index, book, ids, project.class_names)
        known = sum(1 for _ in book.ids())
    after = {one.id: one.label.digest for one in index.shown(ids)}
    changed = [id for id in ids if before[id] != after[id] and id not in set(captured)]
    _queue(index, [id for one in rounds.every(project.work) if one.pushed for id in _sent(one)])
    return {"images": len(ids), "logged": known, "captured": len(captured), "changed": len(changed)}


def _sent(one: Round) -> set[str]:
    """The picks that annotators have in their queue, or had."""
    return {str(row["id"]) for row in one.picks()} - set(one.withdrawn)


def _pull(
    index: Index, book: LabelLog, desk: LabelStudioProject, cursor: str | None, report: PullReport, progress: Any
) -> str | None:
    """Page by page into log and index; returns how far the server's clock was before the first page was read.

    What is submitted on a page that was read already comes next time, however long the other pages take.
    """
    newest = tasks.newest(desk)
    known, sizes = LoggedAnnotations.of(book), _sizes(index)
    people: dict[int, str] = {}
    for page in chunks(_changed(desk, cursor), PAGE):
        progress("pulling", len(page), 0)
        people = people if _all_known(page, people) else people_on(desk)
        found = [task_of(desk, task, sizes[id], people) for task in page if (id := _image_of(task)) in sizes]
        report.strangers += len(page) - len(found)
        settle_all(index, book, known, found, report)
    return newest


def _image_of(task: Mapping[str, Any]) -> str:
    """Whatever somebody put there, for a task that is none of ours."""
    return str(task["data"].get("content_id"))


def settle_all(
    index: Index, book: LabelLog, known: LoggedAnnotations, found: list[ReturnedTask], report: PullReport
) -> None:
    """Log what is new and show it; the log is on disk before the index is touched."""
    deserted = book.histories({task.id for task in found if known.deserted(task)})
    touched: set[str] = set()
    for task in found:
        book.writer.push()  # so that a word and the dispute that it raises get to the disk together
        least = index.project.config.labelstudio.agreement
        settled = consensus.settle(book, known, task, least, deserted.get(task.id, ()))
        if settled is not None:
            report.add(settled)
            touched.add(task.id)
    book.flush()
    app_edits.show(index, book, touched | _behind(index, book, found), index.project.class_names)
    _queue(index, [task.id for task in found if not task.words])


def _behind(index: Index, book: LabelLog, found: Iterable[ReturnedTask]) -> set[str]:
    """Images whose label is in the log alone: a pull was killed before it could show them."""
    shown = index.documents([task.id for task in found], ("content_id", "state_key"))
    return {one["content_id"] for one in shown if (one.get("state_key") or "") != book.key(one["content_id"])}


def _queue(index: Index, ids: Sequence[str]) -> None:
    """Without a label they wait for one."""
    shown = index.documents(ids, ("content_id", "status"))
    index.set({"status": {one["content_id"]: QUEUED for one in shown if one.get("status") in (None, UNLABELLED)}})


def _changed(desk: LabelStudioProject, cursor: str | None) -> Iterator[dict[str, Any]]:
    since = [tasks.after("updated_at", _earlier(cursor))] if cursor else []
    return tasks.listed(desk, since, "all", FIELDS, PAGE)


def _earlier(moment: str) -> str:
    return (datetime.fromisoformat(moment) - OVERLAP).isoformat().replace("+00:00", "Z")


def _sizes(index: Index) -> dict[str, tuple[int, int]]:
    return {id: (width, height) for id, width, height in index.rows("width", "height")}


def _all_known(page: Iterable[Mapping[str, Any]], people: Mapping[int, str]) -> bool:
    return all(one["completed_by"] in people for task in page for one in task["annotations"])


def people_on(desk: LabelStudioProject) -> dict[int, str]:
    return {int(one["id"]): str(one["email"]) for one in desk.studio.get("/api/users")}


# --- from the server's words to ours ----------------------------------------------------------------------------------


def task_of(
    desk: LabelStudioProject,
    task: Mapping[str, Any],
    size: tuple[int, int],
    people: Mapping[int, str],
    names: Mapping[str, str] | None = None,
) -> ReturnedTask:
    """`names`: what a class of theirs is called here; ours may have been renamed."""
    known = desk.project.class_names
    called = {old: new for old, new in desk.project.config.aliases.items() if old not in known} | {**(names or {})}
    words = [_word(desk, task["data"], one, size, people, called) for one in task["annotations"]]
    uid = f"{task['id']}@{task['created_at']}"
    return ReturnedTask(uid, task["data"]["content_id"], size, words, task["data"].get("base"))


def _word(
    desk: LabelStudioProject,
    data: Mapping[str, Any],
    one: Mapping[str, Any],
    size: tuple[int, int],
    people: Mapping[int, str],
    names: Mapping[str, str],
) -> ReturnedAnnotation:
    label = results.label_in(one["result"], size, bool(one["was_cancelled"]), names, desk.project.class_names)
    extra = {"origin": _origin(one, label, data.get("suggested")), "config": desk.config}
    extra |= {name: value for name in ("round", "suggested_by") if (value := data.get(name))}
    extra |= {"lead_time": one["lead_time"]} if one.get("lead_time") is not None else {}
    who = people.get(one["completed_by"], f"user {one['completed_by']}")
    return ReturnedAnnotation(f"{one['id']}@{one['created_at']}", one["updated_at"], who, label, extra)


def _origin(one: Mapping[str, Any], label: Label, suggested: str | None) -> str:
    """`prediction`: a suggestion that was submitted as it was; `changed`: one that was worked on; else `manual`."""
    if one.get("parent_prediction") is None:
        return "manual"
    if suggested is not None:
        return "prediction" if label.digest == suggested else "changed"
    kept = all(isinstance(part, dict) and part.get("origin") == "prediction" for part in one["result"] or ())
    return "prediction" if kept else "changed"  # of a suggestion that was made while the task was open
