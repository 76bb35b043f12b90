"""Images with hostile names, images that vanish, images that are uploaded or lie in an object store."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate.index import sync
from curate.index.dataset import Index
from curate.project import Project
from labeling import pull, push, results, tasks
from labeling.client import Studio, Unanswered
from tests import fakes
from tests.labeling import studio as ls_helpers
from tests.labeling.faults.helpers import SIZE, Gate, config_notes, drawn, nth, one_task_each, settings, through
from tests.labeling.helpers import labels, ls_project_of, pushed, round_of, unlabelled

NAMES = ["a b", "#1", "50%", "50%20", "why?", "a+b", "it's", 'say "x"', "ä🔥", "-rf", "a..b", "a&b=c", "a;b", "<b>"]


NAMES += ["c:d", "d\te", " x ", "{path}"]


def test_hostile_names_reach_the_annotators_whole(make: Callable[..., Project], studio: Studio, tmp_path: Path) -> None:
    root = tmp_path / "line"
    for seed, name in enumerate(NAMES):
        fakes.save_image(root / name / f"{name}.png", *SIZE, seed=seed)
    strange = ["<script>alert(1)</script>", "a\"b'c", "ä🔥", "$image", "a,b", "-x", "..", "clean", "{path}", "%s"]
    source = {"name": "the #1 line%", "format": "images", "data": root}
    project = make([source], strange, name="50% <b>&\"'")
    sync.run(project)
    ids = unlabelled(project)
    assert len(ids) == len(NAMES)
    report = pushed(project, studio, ids)
    assert (report.created, report.refused) == (len(NAMES), [])
    held = {one.data["content_id"]: one for one in tasks.held(ls_project_of(project, studio))}
    for id in ids:
        assert studio.hash_of(held[id].data["image"], 1 << 20) == id, held[id].data["image"]
    for id, name in zip(ids, strange, strict=False):
        ls_helpers.annotate(studio, held[id].id, results.of_label(drawn(name), SIZE))
    pull.run(project, studio)
    shown = labels(project)
    assert [shown[id].digest for id in ids[: len(strange)]] == [drawn(name).digest for name in strange]
    assert not config_notes(push.run(project, studio, push.PushRequest()))


def test_an_image_that_vanished_is_refused_and_the_others_are_sent(indexed: Project, studio: Studio) -> None:
    gone, *ids = unlabelled(indexed)[:3]
    round_of(indexed, [gone, *ids])
    (path,) = Index(indexed).dataset.match({"content_id": gone}).values("filepath")
    kept = Path(path).read_bytes()
    Path(path).unlink()
    report = push.run(indexed, studio, push.PushRequest())
    assert (report.created, [one["id"] for one in report.refused]) == (2, [gone])
    assert labels(indexed)[gone].status == "unlabelled"
    Path(path).write_bytes(kept)
    assert push.run(indexed, studio, push.PushRequest()).created == 1
    one_task_each(indexed, studio, [gone, *ids])


def test_images_that_are_uploaded_are_uploaded_once(indexed: Project, studio: Studio, gate: Gate) -> None:
    project = settings(indexed, images="upload")
    ids = unlabelled(project)[:3]
    round_of(project, ids)
    reached = through(gate)
    gate.harm = nth(3, "lost", "POST", "commit_to_project=false")
    with contextlib.suppress(Unanswered):
        push.run(project, reached, push.PushRequest())
    push.run(project, reached, push.PushRequest())
    assert push.run(project, reached, push.PushRequest()).updated == 0
    one_task_each(project, reached, ids)
    for one in tasks.held(ls_project_of(project, reached)):
        assert studio.hash_of(one.data["image"], 1 << 20) == one.data["content_id"]
    files = studio.get(f"/api/projects/{ls_project_of(project, reached).id}/file-uploads", all="true")
    names = Counter(Path(one["file"]).name.partition("-")[2] for one in files)
    assert max(names.values()) == 1


def test_images_in_an_object_store(indexed: Project, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is a fake: a file system of fsspec that signs."""
    import fsspec

    class Signing(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "faked"

        def sign(self, path: str, expiration: int = 100, **more: Any) -> str:
            return f"https://store.example/{path}?X-Signature={random.random()}&X-Expires={expiration}"

    fsspec.register_implementation("faked", Signing, clobber=True)
    project = settings(indexed, images="url", url="faked://bucket/{source}/{path}", signed_hours=1)
    ids = unlabelled(project)[:2]
    report = pushed(project, studio, ids)
    assert (report.created, report.refused) == (2, [])
    for one in tasks.held(ls_project_of(project, studio)):
        assert one.data["image"].startswith("https://store.example/bucket/line/A/cam")
        assert one.data["image"].endswith("X-Expires=3600")
    assert push.run(project, studio, push.PushRequest()).updated == 0, "a new signature is no change"
    plain = settings(indexed, images="url", url="https://images.example/{source}/{path}")
    assert push.run(plain, studio, push.PushRequest()).updated == 2
    assert all(
        one.data["image"].startswith("https://images.example/line/A/")
        for one in tasks.held(ls_project_of(plain, studio))
    )
