"""Annotations of a Label Studio project that we did not make."""

from __future__ import annotations

import urllib.parse
from pathlib import Path

import pytest

from curate.data import Label
from curate.errors import CurateError
from curate.index.dataset import Index
from curate.project import Project
from labeling import adopt
from labeling.client import Studio
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import history, labels, unlabelled

THEIRS = """<View><Image name="pic" value="$photo"/>
<PolygonLabels name="shape" toName="pic"><Label value="Riss"/></PolygonLabels>
<Choices name="quality" toName="pic"><Choice value="OK"/><Choice value="hole"/></Choices></View>"""


def _polygon(name: str) -> dict[str, object]:
    value = {"points": [[25, 25], [75, 25], [75, 75], [25, 75]], "polygonlabels": [name]}
    about = {"original_width": 32, "original_height": 24, "id": "p"}
    return {"type": "polygonlabels", "from_name": "shape", "to_name": "pic", "value": value} | about


def _choice(value: str) -> dict[str, object]:
    return {"type": "choices", "from_name": "quality", "to_name": "pic", "value": {"choices": [value]}}


def test_images_are_found_by_name_and_by_their_bytes(indexed: Project, studio: Studio) -> None:
    index = Index(indexed)
    paths = {id: Path(path) for id, path in index.rows("filepath")}
    by_name, by_bytes, clean, whole = unlabelled(indexed)[:4]
    number = ls_helpers.project(studio, "their own", THEIRS)
    renamed = studio.ask(
        "POST",
        f"/api/projects/{number}/import",
        params={"commit_to_project": "false"},
        files={"x": ("other.png", paths[by_bytes].read_bytes())},
    )["file_upload_ids"][0]
    uploaded = studio.get(f"/api/import/file-upload/{renamed}")["file"]
    address = f"/data/local-files/?d=some/where/{urllib.parse.quote(paths[by_name].name)}"
    photos = [address, f"/data/{uploaded}", f"s3://bucket/{paths[clean].name}", paths[whole].name, "/unknown.png"]
    tasks = ls_helpers.import_tasks(studio, number, [{"data": {"photo": photo}} for photo in photos])
    for task, said in zip(
        tasks, [_polygon("Riss"), _polygon("Riss"), _choice("OK"), _choice("hole"), _choice("OK")], strict=True
    ):
        ls_helpers.annotate(studio, task, [said])
    report = adopt.run(indexed, studio, number, {"Riss": "crack"})
    assert (report.annotations, report.strangers) == (4, 1)
    shown = labels(indexed)
    for id in (by_name, by_bytes):
        (defect,) = shown[id].defects
        assert (defect.label, defect.box) == ("crack", (8, 6, 16, 12))
    assert shown[clean].clean
    assert shown[whole] == Label("labelled", classes=("hole",))
    assert adopt.run(indexed, studio, number, {"Riss": "crack"}).annotations == 0
    assert history(indexed, by_name)[-1].who == studio.me.email


def test_a_class_of_theirs_without_a_name_here_is_disputed_not_lost(indexed: Project, studio: Studio) -> None:
    id = unlabelled(indexed)[0]
    (name,) = (Path(path).name for other, path in Index(indexed).rows("filepath") if other == id)
    number = ls_helpers.project(studio, "their own", THEIRS)
    (task,) = ls_helpers.import_tasks(studio, number, [{"data": {"photo": f"/x/{name}"}}])
    ls_helpers.annotate(studio, task, [_polygon("Riss")])
    adopt.run(indexed, studio, number, {})
    assert (labels(indexed)[id].status, labels(indexed)[id].reason) == ("disputed", "unknown-class: Riss")


def test_what_cannot_be_adopted_is_reported(indexed: Project, studio: Studio) -> None:
    with pytest.raises(CurateError, match=r"class 'rift'.*allowed: crack, hole"):
        adopt.run(indexed, studio, 1, {"Riss": "rift"})
    with pytest.raises(CurateError, match="Label Studio project '999999'"):
        adopt.run(indexed, studio, 999999, {})
