"""One real MongoDB for the whole session, in a folder of its own: a user's database is never touched."""

from __future__ import annotations

import atexit
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from curate.admin import setup
from curate.index import database, sync
from curate.index.dataset import Index
from curate.project import ENV_PROJECT, Project, load
from tests import fakes, forked

os.environ.pop(ENV_PROJECT, None)
os.environ.pop(database.URI, None)
database.silence_fiftyone()

Make = Callable[..., Project]
# A minute each or more: none may be the last. While one worker makes Label Studio's template (see labeling/conftest.py)
# the other does something else.
FIRST = (
    "test_server.py",
    "test_proof.py",
    "test_kills.py",
    "test_kill.py",
    "test_odd_annotations.py",
    "test_push_pull.py",
)
HERE = Path(__file__).parent
MEMORY, ROOM = Path("/dev/shm"), 2 << 30
BY_FIXTURE = {"server": "mongo", "studio_server": "studio", "template": "studio"}
# What a whole file or folder needs, where no fixture tells: servers and processes that tests start by themselves.
BY_PATH = {
    "labeling/test_server.py": "studio",
    "labeling/test_annotator_page.py": "studio",
    "curate/index/test_database.py": "mongo",
    "curate/index/test_surroundings.py": "mongo",
    "curate/index/test_saved_views.py": "mongo",
    "curate/index/test_kill.py": "mongo",
    "curate/index/test_browser.py": "mongo",
    "curate/app": "mongo",
    "curate/index/test_app_server.py": "mongo",
    "kill": "mongo",
    "gpu": "train",
    "train/fit": "train",
    "train/evaluate": "train",
    "train/predict": "train",
    "train/export": "train",
    "train/simulate": "train",
    "train/test_processes.py": "train",
    "train/test_losses.py": "train",
    "train/test_store.py": "train",
    "synth/trial": "train",
    "synth/test_diffusion.py": "train",
    "synth/test_gan.py": "train",
    "synth/test_sd_inpaint.py": "train",
    "curate/select/test_proof.py": "slow",
    "curate/test_catalogue.py": "slow",
    "bench/test_proof_second.py": "slow",
    "curate/greedy/test_sharded.py": "slow",
    "curate/greedy/test_coverage.py": "slow",
    "curate/vectors/test_run.py": "slow",
    "curate/audit/test_estimates.py": "slow",
    "curate/embed": "slow",
    "curate/test_pretrained.py": "slow",
    "curate/index/test_reading.py": "slow",
    "labeling/test_agreement.py": "slow",
    "labeling/test_brush.py": "slow",
    "train/test_recipe.py": "train",
    "train/data/test_dataset.py": "train",
    "curate/demo": "slow",
    "fuzz": "slow",
}


def _needs(path: Path) -> set[str]:
    """Return the marks of a whole file or folder."""
    name = path.relative_to(HERE).as_posix()
    return {mark for place, mark in BY_PATH.items() if name == place or name.startswith(f"{place}/")}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files of which an `-m "not ..."` selects nothing: importing them takes longer than all quick tests."""
    excluded = set(re.findall(r"\bnot (\w+)", config.option.markexpr or ""))
    return True if collection_path.is_relative_to(HERE) and _needs(collection_path) & excluded else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need; long files begin, so that two workers end at about the same time."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        for mark in {mark for fixture, mark in BY_FIXTURE.items() if fixture in names} | _needs(item.path):
            item.add_marker(mark)
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


def _in_memory() -> Path | None:
    """A folder in memory, where all that MongoDB flushes costs nothing (most of what a new dataset takes); it goes with
    this process, or with the next run. None where there is no room."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM:
        return None
    for left in MEMORY.glob("curate-tests-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = MEMORY / f"curate-tests-{os.getpid()}"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # after the server's end, which is registered later
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a `mongod` of this session; FiftyOne connects to it once, on first use."""
    uri = database.start(_in_memory() or tmp_path_factory.mktemp("mongo") / "db")
    os.environ[database.URI] = uri
    forked.uris.append(uri)
    yield uri
    os.environ.pop(database.URI)


@pytest.fixture
def make(tmp_path: Path, server: str) -> Iterator[Make]:
    """Makes projects below tmp_path/projects, and removes their datasets afterwards."""
    made: list[Project] = []

    def build(sources: Sequence[Mapping[str, Any]], classes: Sequence[str] = ("crack", "hole"), **more: Any) -> Project:
        name = more.pop("name", "plant")
        project = setup.write(tmp_path / "projects" / name, sources, classes)
        if more:
            project = load(project.folder, more)
        made.append(project)
        return project

    yield build
    fo = database.connect(tmp_path)
    for name in fo.list_datasets():
        if any(name.startswith(project.dataset_name) for project in made):
            fo.delete_dataset(name)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Six labelled pieces of two views each, and two clean ones: masks/<class>/<stem>.png beside images/."""
    root = tmp_path / "library"
    for piece in range(8):
        for view in range(2):
            stem = f"piece{piece}_{view}"
            fakes.save_image(root / "images" / f"{stem}.png", 32, 24, seed=10 * piece + view)
            name = "crack" if piece < 4 else "hole"
            if piece < 6:
                fakes.save_mask(root / "masks" / name / f"{stem}.png", [(piece, 2, 9, 5 + view)], (32, 24))
    return root


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """Ten production images from two cameras, which nobody labelled."""
    root = tmp_path / "line"
    for number in range(10):
        fakes.save_image(root / "A" / f"cam{number % 2}" / f"coil{number // 2}_{number}.png", 32, 24, seed=900 + number)
    return root


LIBRARY = {"name": "library", "format": "mask_folder", "fully_labelled": True, "group": r"(piece\d+)_"}
LINE = {
    "name": "line",
    "format": "images",
    "kind": "production",
    "template": "{line}/{camera}/{name}",
    "group": r"(coil\d+)_",
}


@pytest.fixture
def plant(make: Make, library: Path, line: Path) -> Project:
    return make([LIBRARY | {"data": library}, LINE | {"data": line}])


@pytest.fixture
def indexed(plant: Project) -> Project:
    sync.run(plant)
    return plant


def dump(project: Project) -> dict[str, Any]:
    """All that the index holds of every image, but for times and database ids."""
    index = Index(project)
    names = ["content_id", "status", "status_reason", "split", "group", "stratum", "source", "paths", "missing"]
    names += ["label_origin", "width", "height", "versions"]
    rows = {row[0]: row[1:] for row in zip(*index.dataset.values(names), strict=True)}
    return {item.id: (item.label.to_json(), str(item.path), *rows[item.id]) for item in index.items()}
