"""The ML backend: a real Label Studio asks it for a task that is opened, a small real model answers."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest

from curate.data import Label
from curate.index.dataset import Index
from curate.masks.decode import pixels_of
from curate.project import Project
from labeling import backend, push, results, tasks
from labeling.backend import Backend
from labeling.client import Studio
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import labelled, ls_project_of, round_of, unlabelled
from tests.labeling.test_push_pull import SIZE

TINY = [
    *("model.encoder=resnet18", 'model.options={"encoder_depth": 3, "decoder_channels": [32, 16, 8]}'),
    *("model.weights=none", "input.height=32", "input.width=32", "batch=4", "epochs=1"),
    *("predict.threshold=0.05", "predict.min_area=1"),
]


@pytest.fixture
def asked(indexed: Project) -> Backend:
    from train.fit import run as training

    training.run(indexed, training.TrainRequest("segmentation", None, TINY, "cpu"))
    return backend.opened(indexed)


def test_label_studio_shows_what_the_model_says_of_a_task(asked: Backend, studio: Studio) -> None:
    project = asked.index.project
    first, audit = unlabelled(project)[:2]
    round_of(project, [first, audit], ["rare", "audit"])
    push.run(project, studio, push.PushRequest())
    review = labelled(project)[0]
    index = Index(project)
    index.dataset.save_view("one", index.dataset.select_by("content_id", [review]))
    push.run(project, studio, push.PushRequest(view="one"))
    ls_project = ls_project_of(project, studio)
    of = {one.data["content_id"]: one.id for one in tasks.held(ls_project)}
    with backend.served(asked, "127.0.0.1", 0) as (url, password), backend.connected(ls_project, url, password):
        opened = studio.get(f"/api/projects/{ls_project.id}/next")
        assert opened["id"] == of[first]
        (path,) = (path for id, path in index.rows("filepath") if id == first)
        seen = asked.predictor.predict_image(pixels_of(Path(path).read_bytes(), 10**6))
        said = asked.predictor.prediction(seen)
        shown = [one for one in opened["predictions"] if one["model_version"] == asked.version]
        assert said.defects
        (suggestion,) = shown
        meant = Label("labelled", tuple(defect for defect, _ in said.defects))
        assert results.label_in(suggestion["result"], SIZE).digest == meant.digest
        for id, expected in ((audit, []), (review, [index])):
            studio.get(f"/api/tasks/{of[id]}/")
            answer = asked.suggest(ls_helpers.task(studio, of[id]))
            assert bool(answer["result"]) == bool(expected)
    assert not studio.get("/api/ml/", project=ls_project.id), "taken back"
    assert studio.get(f"/api/projects/{ls_project.id}/")["model_version"] == "curate"


def test_only_label_studio_may_ask_and_junk_is_refused(asked: Backend) -> None:
    with backend.served(asked, "127.0.0.1", 0) as (url, password):
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            assert json.load(answer)["status"] == "UP"
        for body, given, status in ((b"{}", "wrong", 401), (b"{}", password, 400), (b"[[[", password, 400)):
            with pytest.raises(HTTPError, match=str(status)):
                _post(f"{url}/predict", body, given)
        unknown = json.dumps({"tasks": [{"data": {"content_id": "gone"}}, {}]}).encode()
        assert [one["result"] for one in _post(f"{url}/predict", unknown, password)["results"]] == [[], []]
        assert _post(f"{url}/setup", b"{}", password)["model_version"] == asked.version


def _post(url: str, body: bytes, password: str) -> dict[str, list[dict[str, object]]]:
    import base64

    token = base64.b64encode(f"{backend.USER}:{password}".encode()).decode()
    request = urllib.request.Request(url, body, {"Authorization": f"Basic {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, list[dict[str, object]]] = json.load(answer)
        return found
