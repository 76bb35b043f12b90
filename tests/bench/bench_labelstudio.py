"""`curate push` and `curate pull` against the SDK's bare calls: `python -m tests.bench.bench_labelstudio [--tasks N]`.

A real Label Studio and a MongoDB of their own, in a folder that is gone afterwards. Drawn strips of 256x1600 whose
prediction holds one to three masks are pushed; beside it the SDK imports the same payload in the same batches into a
project of its own. Then every suggestion is accepted on the server, and all is pulled; beside it the SDK lists the same
tasks, and so do we without doing anything with them. The two sides take turns, and theirs is the median. Push and pull
include all that a user waits for: reading the index, packing and checking masks, asking what is there, logging, writing
the index. `--profile` also prints where the time goes.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import os
import pstats
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curate.admin import setup
from curate.index import database, predictions, sync
from curate.index.dataset import Index, chunks
from curate.index.predictions import Prediction
from curate.masks import shapes
from curate.project import Project
from labeling import client, images, pull, push, server, tasks
from labeling.client import ONCE, Studio
from tests.bench._measure import Method, once, print_table
from tests.labeling import helpers
from tests.labeling.helpers import ls_project_of

HEIGHT, WIDTH = 256, 1600
CLASSES = ("scratches", "patches", "inclusion", "edge_crack")
OVERHEAD, SECONDS, GOAL_TASKS = 0.25, 60.0, 5000
MISSED = "NOT MET"
Random = np.random.Generator


# --- data -------------------------------------------------------------------------------------------------------------


def draw(folder: Path, count: int) -> None:
    """Strips that are small as files, no two alike."""
    folder.mkdir(parents=True)
    for number in range(count):
        image = np.full((HEIGHT, WIDTH), 128, np.uint8)
        cv2.putText(image, str(number), (10, 100), cv2.FONT_HERSHEY_SIMPLEX, 3, 60, 4)
        cv2.imwrite(str(folder / f"{number:06d}.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def predicted(random: Random) -> Prediction:
    """One to three defects, as on a real strip."""
    found = []
    for _ in range(int(random.integers(1, 4))):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        centre = (int(random.integers(WIDTH)), int(random.integers(HEIGHT)))
        axes = (int(random.integers(3, 40)), int(random.integers(3, 40)))
        cv2.ellipse(mask, centre, axes, float(random.uniform(0, 180)), 0, 360, 1, -1)
        defect = shapes.defect_from_mask(str(random.choice(CLASSES)), mask)
        assert defect is not None
        found.append((defect, float(random.uniform(0.3, 1))))
    return Prediction(tuple(found))


def plant(home: Path, count: int) -> Project:
    """A project with a round of all its images, each with a prediction."""
    draw(home / "strips", count)
    source = {"name": "line", "format": "images", "data": home / "strips", "kind": "production"}
    project = setup.write(home / "projects" / "plant", [source], CLASSES)
    sync.run(project)
    ids, random = helpers.unlabelled(project), np.random.default_rng(0)
    predictions.store(Index(project), "drawn", {id: predicted(random) for id in ids})
    helpers.round_of(project, ids)
    return project


# --- the server -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(home: Path) -> Iterator[Studio]:
    """A Label Studio and a MongoDB below this folder, which every call of this process uses."""
    os.environ[database.URI] = database.start(home / "db")
    served = server.launch(home / "server", home / "files", server.any_port())
    token = server.read_credentials(served.folder).token
    os.environ.update({client.URL: served.url, client.KEY: token, images.ROOT: str(served.files)})
    try:
        yield client.open_studio(served.url, token)
    finally:
        server.stop(served.folder)
        database.stop(home / "db")


def accept_all(studio: Studio, project: int) -> None:
    """Every suggestion becomes an annotation, by Label Studio's own bulk action."""
    everything = {"all": True, "excluded": []}
    asked = {"selectedItems": everything, "filters": {"conjunction": "and", "items": []}}
    studio.post(f"/api/dm/actions?id=predictions_to_annotations&project={project}", asked)


# --- what is timed ----------------------------------------------------------------------------------------------------


def payload(project: Project, studio: Studio) -> list[dict[str, Any]]:
    """Return the tasks that push sends, made once beforehand."""
    index = Index(project)
    batch, desk = push._picked(index, None), push.remote_project.opened(project, studio)
    report = push.PushReport(batch.name, desk.url)
    made = push._label_tasks(index, desk, batch, push.PushRequest(), report, push.NO_PROGRESS)
    assert not report.refused
    return [task.to_json() for task in made]


def sdk_import(studio: Studio, title: str, config: str, sent: Sequence[Any]) -> float:
    number = studio.post("/api/projects", {"title": title, "label_config": config})["id"]

    def bare() -> None:
        for part in chunks(sent, push.BATCH):
            studio.client.projects.import_tasks(id=number, request=part, request_options=ONCE)

    seconds, _ = once(bare)
    assert studio.get(f"/api/projects/{number}")["task_number"] == len(sent)
    studio.ask("DELETE", f"/api/projects/{number}/")
    return seconds


def pushed(project: Project, studio: Studio, count: int) -> float:
    """`push.run` into a project that holds nothing."""
    studio.ask("DELETE", f"/api/projects/{ls_project_of(project, studio).id}/")
    push.remote_project.opened(project, studio)
    seconds, report = once(lambda: push.run(project, studio, push.PushRequest()))
    assert (report.created, report.refused) == (count, [])
    return seconds


def sdk_list(studio: Studio, project: int, count: int) -> float:
    pager = studio.client.tasks
    seconds, found = once(lambda: sum(1 for _ in pager.list(project=project, fields="all", page_size=pull.PAGE)))
    assert found == count
    return seconds


def raw_list(project: Project, studio: Studio, count: int) -> float:
    desk = ls_project_of(project, studio)
    seconds, found = once(lambda: sum(1 for _ in tasks.listed(desk, [], "all", pull.FIELDS, pull.PAGE)))
    assert found == count
    return seconds


def pulled(project: Project, studio: Studio, count: int, full: bool = False) -> float:
    seconds, report = once(lambda: pull.run(project, studio, full=full))
    assert (report.annotations, report.labelled) == ((0, 0) if full else (count, count))
    return seconds


# --- all of them ------------------------------------------------------------------------------------------------------


def push_table(project: Project, studio: Studio, count: int, repetitions: int) -> bool:
    sent = payload(project, studio)
    config = studio.get(f"/api/projects/{ls_project_of(project, studio).id}")["label_config"]
    spent: dict[str, list[float]] = {"SDK import_tasks": [], "curate push": []}
    for number in range(repetitions):
        spent["SDK import_tasks"].append(sdk_import(studio, f"bare {number}", config, sent))
        spent["curate push"].append(pushed(project, studio, count))
    again, report = once(lambda: push.run(project, studio, push.PushRequest()))
    assert (report.created, report.existing, report.updated) == (0, count, 0)
    return table(f"{count:,} tasks pushed", {**spent, "curate push again": [again]}, count)


def pull_table(project: Project, studio: Studio, count: int) -> bool:
    number = ls_project_of(project, studio).id
    accept_all(studio, number)
    spent: dict[str, list[float]] = {"SDK tasks.list": [], "the same pages, raw": [], "curate pull": []}
    spent["SDK tasks.list"].append(sdk_list(studio, number, count))
    spent["the same pages, raw"].append(raw_list(project, studio, count))
    spent["curate pull"].append(pulled(project, studio, count))
    spent["the same pages, raw"].append(raw_list(project, studio, count))
    spent["SDK tasks.list"].append(sdk_list(studio, number, count))
    again = pulled(project, studio, count, full=True)
    return table(f"{count:,} tasks pulled", {**spent, "curate pull --full again": [again]}, count)


def table(title: str, spent: dict[str, list[float]], count: int) -> bool:
    """Prints a line for each method, the first of them the SDK's; whether the goals against that one are met."""
    median = {name: statistics.median(seconds) for name, seconds in spent.items()}
    theirs = next(iter(median.values()))
    lines = [line(name, seconds, median[name], theirs, count) for name, seconds in spent.items()]
    print_table([title, "seconds", "(from to)", "tasks/s", "over the SDK", "goal"], lines)
    return not any(MISSED in cell for cells in lines for cell in cells)


def line(name: str, seconds: list[float], median: float, theirs: float, count: int) -> list[str]:
    over = median / theirs - 1
    spread = f"({min(seconds):.1f} {max(seconds):.1f})"
    cells = [name, f"{median:.1f}", spread, f"{count / median:,.0f}", f"{over:+.0%}"]
    if name not in ("curate push", "curate pull"):
        return [*cells, ""]
    goals = {f"+{OVERHEAD:.0%}": over <= OVERHEAD}
    if name == "curate push" and count >= GOAL_TASKS:
        goals[f"{SECONDS:.0f} s"] = median <= SECONDS * count / GOAL_TASKS
    return [*cells, ", ".join(f"{goal} {'met' if met else MISSED}" for goal, met in goals.items())]


def profiled(title: str, method: Method) -> Any:
    profile = cProfile.Profile()
    result = profile.runcall(method)
    print(f"\n--- {title}, profiled ---")
    pstats.Stats(profile).strip_dirs().sort_stats("cumulative").print_stats(60)
    pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(25)
    return result


def profile_both(project: Project, studio: Studio) -> None:
    push.remote_project.opened(project, studio)
    profiled("push", lambda: push.run(project, studio, push.PushRequest()))
    accept_all(studio, ls_project_of(project, studio).id)
    profiled("pull", lambda: pull.run(project, studio))


def main() -> int:
    """Prints the tables; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=GOAL_TASKS)
    parser.add_argument("--repetitions", type=int, default=2, help="of both sides' push (default 2)")
    parser.add_argument("--profile", action="store_true", help="only show where the time goes")
    wish = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-labelstudio-") as folder, serving(Path(folder)) as studio:
        project = plant(Path(folder), wish.tasks)
        if wish.profile:
            profile_both(project, studio)
            return 0
        met = [push_table(project, studio, wish.tasks, wish.repetitions), pull_table(project, studio, wish.tasks)]
    return int(not all(met))


if __name__ == "__main__":
    raise SystemExit(main())
