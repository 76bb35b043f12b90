"""Saved views are written where they differ, and an interrupted write of them is mended by whatever runs next."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curate.index import app_views, sync
from curate.index.dataset import Index
from curate.project import Project
from tests import fakes
from tests.conftest import LIBRARY, LINE, Make
from tests.curate.select.test_run import embedded
from tests.fakes import REPOSITORY


def saved(index: Index) -> tuple[Any, list[dict[str, Any]]]:
    """The dataset's document, and the views that belong to it."""
    db = index.fo.core.odm.get_db_conn()
    home = db.datasets.find_one({"name": index.dataset.name})
    return home, list(db.views.find({"_dataset_id": home["_id"]}))


def test_views_are_written_only_where_they_differ(indexed: Project) -> None:
    app_views.arrange(indexed)
    before, views = saved(Index(indexed))
    app_views.arrange(indexed)
    after, same = saved(Index(indexed))
    assert (after["saved_views"], same) == (before["saved_views"], views)
    index = Index(indexed)
    index.set({"stratum": dict.fromkeys(index.ids()[:1], "B/cam9")})
    app_views.arrange(indexed)
    _, more = saved(Index(indexed))
    assert [view for view in more if view in views] == views
    assert [view["name"] for view in more if view not in views] == ["stratum B/cam9"]


def test_the_order_of_views_is_ours_after_those_of_users(indexed: Project) -> None:
    app_views.arrange(indexed)
    dataset = Index(indexed).dataset
    dataset.save_view("mine", dataset.limit(1))
    index = Index(indexed)
    index.set({"stratum": dict.fromkeys(index.ids()[:1], "A/cam00")})
    app_views.arrange(indexed)
    wanted = [view.name for view in app_views.views_to_save(Index(indexed))]
    assert "stratum A/cam00" in wanted
    assert Index(indexed).dataset.list_saved_views() == ["mine", *wanted]


def test_a_reference_to_a_deleted_view_is_mended_when_the_dataset_is_opened(indexed: Project) -> None:
    """As FiftyOne's own `save_view(overwrite=True)` leaves it when it is killed between its two writes."""
    app_views.arrange(indexed)
    index = Index(indexed)
    home, views = saved(index)
    index.fo.core.odm.get_db_conn().views.delete_one({"_id": views[3]["_id"]})
    mended, _ = saved(Index(indexed))
    assert mended["saved_views"] == [id for id in home["saved_views"] if id != views[3]["_id"]]
    sync.run(indexed)
    app_views.arrange(indexed)
    home, again = saved(Index(indexed))
    assert [view["name"] for view in again if view["_id"] in home["saved_views"]].count(views[3]["name"]) == 1
    assert len(home["saved_views"]) == len(again) == len(views)


@pytest.fixture
def tiny(make: Make, tmp_path: Path) -> Project:
    """Two labelled images and twenty production images."""
    for number, name in enumerate(("crack", "hole")):
        fakes.save_image(tmp_path / "library" / "images" / f"piece{number}_0.png", 16, 16, seed=number)
        fakes.save_mask(tmp_path / "library" / "masks" / name / f"piece{number}_0.png", [(2, 2, 6, 6)], (16, 16))
    for number in range(20):
        fakes.save_image(tmp_path / "line" / "A" / f"{number}.png", 16, 16, seed=50 + number)
    line = LINE | {"data": tmp_path / "line", "template": "{line}/{name}", "group": r"(\d+)"}
    project = make([LIBRARY | {"data": tmp_path / "library"}, line])
    sync.run(project)
    embedded(project)
    app_views.arrange(project)
    return project


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)  # a minute where the machine is free
def test_a_kill_at_any_write_leaves_whole_views(tiny: Project) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.curate.index.kill_at_writes", str(tiny.folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout.splitlines()[-1])
    assert min(kills.values()) >= 2, kills
