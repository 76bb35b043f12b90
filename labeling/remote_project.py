"""The one Label Studio project that belongs to a project of ours.

`work/labelstudio/desk.json` records its number. Where that file is lost, a mark in the description finds it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curate import files
from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project
from labeling import config, examples
from labeling.client import NotFound, Studio, Unanswered
from labeling.results import BOX, BRUSH, PRESENT

STRIP = 1.7  # times as wide as high, and wider
TITLE = 50  # letters that Label Studio allows
TRIES, PAUSES = 3, (0.5, 1.0, 2.0)  # to make a project, and to wait for one that another makes
SETTINGS = {
    "sampling": "Sequential sampling",
    "show_skip_button": True,
    "enable_empty_annotation": False,  # nothing drawn by mistake is not "clean"
    "skip_queue": "IGNORE_SKIPPED",
    "show_collab_predictions": True,
    "show_instruction": True,
    "maximum_annotations": 1,
}
MODEL_VERSION = "curate"  # of all our suggestions, so that each one is shown; task data says which model made them


@dataclass(frozen=True)
class LabelStudioProject:
    """`config` is the version of the label config on the server, `cursor` how far the annotations are pulled."""

    project: Project
    studio: Studio
    id: int
    config: str = ""
    cursor: str | None = None
    fresh: bool = False
    notes: tuple[str, ...] = field(default=())
    born: str | None = None  # a server that was set up anew gives the same number to another project

    @property
    def url(self) -> str:
        return f"{self.studio.url}/projects/{self.id}/data"

    def save(self, **values: Any) -> LabelStudioProject:
        """Record these values; those recorded of another Label Studio project are dropped."""
        about = {"url": self.studio.url, "project": self.id, "born": self.born}
        known = _recorded(self.project)
        known = known if about.items() <= known.items() else {}
        files.write_json(_file(self.project), known | about | values)
        return replace(self, **{name: value for name, value in values.items() if name in ("config", "cursor")})


def find(project: Project, studio: Studio) -> LabelStudioProject | None:
    """Find the Label Studio project of this project; None if this server has none."""
    known = _recorded(project)
    born = _born(studio, known.get("project")) if known.get("url") == studio.url else None
    if born and known.get("born") in (None, born):
        return LabelStudioProject(
            project, studio, int(known["project"]), known.get("config", ""), known.get("cursor"), born=born
        )
    marked = _marked(project, studio)
    if marked is None:
        return None
    number, born = marked
    return LabelStudioProject(
        project, studio, number, born=born
    )  # no cursor: everything is pulled again, and nothing doubled


def opened(project: Project, studio: Studio, reset: bool = False) -> LabelStudioProject:
    """Find or make the Label Studio project, with config and instructions as the project wants them today."""
    ls_project = find(project, studio)
    if ls_project is None:
        return _created(project, studio)
    return _updated(ls_project, reset)


def _file(project: Project) -> Path:
    return project.work / "labelstudio" / "desk.json"


def _recorded(project: Project) -> dict[str, Any]:
    try:
        values = json.loads(_file(project).read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError):
        return {}  # the mark on the server serves instead


def _born(studio: Studio, id: Any) -> str | None:
    """Creation time of the project with this number; None if there is none."""
    if not isinstance(id, int):
        return None
    try:
        return str(studio.get(f"/api/projects/{id}/", include="id,created_at")["created_at"])
    except NotFound:
        return None


def _mark(project: Project) -> str:
    return f"Made by curate for {project.dataset_name}: `curate push` keeps it up, `curate pull` fetches from it."


def _ours(project: Project, studio: Studio) -> list[dict[str, Any]]:
    """The projects that bear our mark, the oldest first."""
    page, entries = 1, []
    while True:
        answer = studio.get("/api/projects/", include="id,description,created_at", page=page, page_size=100)
        entries += [entry for entry in answer["results"] if entry.get("description") == _mark(project)]
        if not answer.get("next"):
            return sorted(entries, key=lambda entry: int(entry["id"]))
        page += 1


def _marked(project: Project, studio: Studio) -> tuple[int, str] | None:
    """The oldest whole project that bears our mark: its number, and when it was made."""
    whole = (entry for entry in _ours(project, studio) if _is_whole(studio, int(entry["id"])))
    return next(((int(entry["id"]), str(entry["created_at"])) for entry in whole), None)


def _is_whole(studio: Studio, id: int) -> bool:
    """True if the server made all that belongs to a project, and not its first row alone."""
    try:
        studio.get(f"/api/projects/{id}/summary/")
    except NotFound:
        return False
    return True


def _created(project: Project, studio: Studio) -> LabelStudioProject:
    """A new project, or the one that another folder of this project made at the same moment.

    A server on SQLite that finds its database locked does the whole request again: one call may leave two projects,
    the first of them half made. Those stay: a server that deletes two projects at the same moment loses its signals,
    and counts nothing any more until it is started again. So each removes no more than what it made itself.
    """
    text = config.build(project, beside=_beside(project))
    about = {"title": f"curate: {project.name}"[:TITLE], "description": _mark(project), "label_config": text}
    for _ in range(TRIES):
        mine, trouble = _posted(studio, about | SETTINGS)
        oldest, notes = _settled(project, studio)
        if oldest and oldest[0] == mine:
            ls_project = LabelStudioProject(project, studio, oldest[0], fresh=True, born=oldest[1], notes=notes)
            return _instructed(ls_project.save(config=config.version(text), cursor=None, instructions=None))
        if mine:
            studio.ask("DELETE", f"/api/projects/{mine}/")
        if oldest:
            return _updated(LabelStudioProject(project, studio, oldest[0], born=oldest[1], notes=notes), reset=False)
    again = "Start it again (curate labelstudio down, up), then run the command again"
    raise trouble or Unanswered(f"Label Studio at {studio.url} makes projects by halves. {again}")


def _posted(studio: Studio, values: dict[str, Any]) -> tuple[int | None, Unanswered | None]:
    """The new project's number; where the server was in trouble, it may have made one nevertheless."""
    try:
        return int(studio.post("/api/projects/", values)["id"]), None
    except Unanswered as trouble:
        return None, trouble


def _settled(project: Project, studio: Studio) -> tuple[tuple[int, str] | None, tuple[str, ...]]:
    """The oldest whole project of ours, and a note on half-made ones, which get time to be whole."""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        half = [entry for entry in _ours(project, studio) if not _is_whole(studio, int(entry["id"]))]
        if not half:
            break
    numbers = ", ".join(str(entry["id"]) for entry in half)
    left = f"Label Studio left a half-made project behind (number {numbers}): delete it there"
    return _marked(project, studio), ((left,) if half else ())


def config_there(ls_project: LabelStudioProject) -> str:
    """The label config on the server."""
    return str(ls_project.studio.get(f"/api/projects/{ls_project.id}/")["label_config"])


def _updated(ls_project: LabelStudioProject, reset: bool) -> LabelStudioProject:
    there = config_there(ls_project)
    wanted = config.build(ls_project.project, _old_names(ls_project), _beside(ls_project.project))
    sent = ls_project.config or config.version(wanted)
    if there != wanted and (reset or config.version(there) == sent):
        there, notes = _replaced(ls_project, there, wanted, reset)
        ls_project = replace(ls_project, notes=(*ls_project.notes, *notes))
    elif there != wanted:
        ls_project = replace(ls_project, notes=(*ls_project.notes, _kept_by_hand(ls_project, there)))
    kept = ls_project.save(config=ls_project.config if there != wanted else config.version(there))
    return _instructed(replace(kept, config=config.version(there)))


def _replaced(ls_project: LabelStudioProject, there: str, wanted: str, reset: bool) -> tuple[str, list[str]]:
    """The config that holds now. The server keeps the old one where annotations use a tag that the new one lacks."""
    try:
        _write(ls_project, label_config=wanted)
    except CurateError as error:
        if reset or type(error) is not CurateError or config.lacking(there, ls_project.project):
            raise
        return there, [f"the label config stays as it was: {error}"]
    return wanted, []


def _beside(project: Project) -> bool:
    """True if the controls stand beside the images: there they leave a square its height, but take a strip's width."""
    rows = [row for row in Index(project).rows("width", "height", "status") if row[1] and row[2]]
    waiting = [row for row in rows if row[3] != "labelled"]  # what people are going to see
    ratios = [width / height for _, width, height, _ in waiting or rows]
    return bool(ratios) and statistics.median(ratios) < STRIP


def _old_names(ls_project: LabelStudioProject) -> list[str]:
    """Names that annotations on the server may bear and the project no longer offers: kept, or they lose their class.

    The server's own summary of them is not complete, hence also every name that the project ever gave up.
    """
    held = ls_project.studio.get(f"/api/projects/{ls_project.id}/summary/").get("created_labels") or {}
    if not held:
        return []
    names = {name for tag in (BRUSH, BOX, PRESENT) for name in held.get(tag, ())}
    given_up = {*ls_project.project.class_names, *ls_project.project.config.aliases}
    return sorted((names | given_up) - set(ls_project.project.active_classes))


def _kept_by_hand(ls_project: LabelStudioProject, there: str) -> str:
    lacking = config.lacking(there, ls_project.project)
    if not lacking:
        return "the label config was changed by hand in Label Studio and is kept; --reset-config writes ours"
    raise CurateError(
        f"the label config was changed by hand in Label Studio and lacks {_some(lacking)}. "
        "Put it back there, or run: curate push --reset-config"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _write(ls_project: LabelStudioProject, **values: Any) -> None:
    ls_project.studio.ask("PATCH", f"/api/projects/{ls_project.id}/", json=values)


def _instructed(ls_project: LabelStudioProject) -> LabelStudioProject:
    """Instructions are written when they change, not at every push: the examples in them cost something."""
    key = examples.key(ls_project.project)
    if _recorded(ls_project.project).get("instructions") == key:
        return ls_project
    shown = examples.crops(ls_project.project, examples.on_server(ls_project.studio, ls_project.id))
    _write(ls_project, expert_instruction=config.instructions(ls_project.project, shown))
    return ls_project.save(instructions=key)
