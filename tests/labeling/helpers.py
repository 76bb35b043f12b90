"""A project whose round waits to be pushed, and what its index and log hold after a pull."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from curate.data import Label
from curate.index import rounds
from curate.index.dataset import Index
from curate.index.rounds import Round
from curate.labels.log import Entry, LabelLog
from curate.project import Project
from labeling import push, remote_project, tasks
from labeling.client import Studio
from labeling.remote_project import LabelStudioProject


def round_of(project: Project, ids: Sequence[str], slots: Sequence[str] = (), number: int = 1) -> Round:
    """A round of these picks, as `curate select` writes one."""
    index = Index(project)
    paths = {id: path[0] for id, path in index.rows("paths")}
    rows = [
        {
            "id": id,
            "rank": rank,
            "slot": slots[rank - 1] if slots else "rare",
            "score": 1 / rank,
            "reason": f"like crack {rank}",
            "path": paths[id],
            "group": id,
            "stratum": "A",
            "tile": None,
            "like": None,
            "propensity": None,
            "seconds": 20.0,
            "predicted": None,
        }
        for rank, id in enumerate(ids, start=1)
    ]
    made = rounds.write(project.work, {"round": number, "key": str(number), "strategy": "rare", "seed": 0}, rows)
    rounds.show(index)
    return made


def unlabelled(project: Project) -> list[str]:
    return sorted(id for id, status in Index(project).rows("status") if status == "unlabelled")


def labelled(project: Project) -> list[str]:
    return sorted(id for id, status in Index(project).rows("status") if status == "labelled")


def ls_project_of(project: Project, studio: Studio) -> LabelStudioProject:
    found = remote_project.find(project, studio)
    assert found is not None
    return found


def task_of(project: Project, studio: Studio, id: str) -> int:
    """The one task of this image."""
    (found,) = (one for one in tasks.held(ls_project_of(project, studio)) if one.data["content_id"] == id)
    return found.id


def pushed(project: Project, studio: Studio, ids: Sequence[str], **options: Any) -> push.PushReport:
    """These images as the project's first round, pushed."""
    round_of(project, ids)
    return push.run(project, studio, push.PushRequest(**options))


def labels(project: Project) -> dict[str, Label]:
    """Labels that the index shows; checked to be those of the log."""
    shown = {one.id: one.label for one in Index(project).shown()}
    with closing(LabelLog(project.work / "labels", project.class_names)) as log:
        for id, label in shown.items():
            said = log.state(id).label
            assert said.digest == (Label() if label.status == "queued" else label).digest
    return shown


def history(project: Project, id: str) -> list[Entry]:
    with closing(LabelLog(project.work / "labels", project.class_names)) as log:
        return log.history(id)
