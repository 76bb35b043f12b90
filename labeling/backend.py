"""The ML backend: Label Studio asks it for a suggestion when somebody opens a task, and the current model answers.

The few routes that Label Studio calls, on the standard library: its own `label-studio-ml` brings Flask, gunicorn, redis
and rq for the same. Audit picks get no suggestion, so that they stay unbiased; a review gets the label of today.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.data import AUDIT, AUDIT_EXTRA
from curate.errors import CurateError
from curate.http_server import Routes, listening
from curate.index.dataset import Index
from curate.masks.decode import pixels_of
from curate.project import Project
from labeling import results as ls_results
from labeling.push import REVIEW
from labeling.remote_project import MODEL_VERSION, LabelStudioProject

if TYPE_CHECKING:
    from train.predict.predictor import Predictor

TITLE = "curate"  # of the connection in Label Studio; distinct from every model's version
USER = "label-studio"
LARGEST = 64 << 20  # bytes of a request


def opened(project: Project, wanted: str | None = None, device: str = "cpu") -> Backend:
    """Load this model, else the current one, to answer Label Studio's requests."""
    from train.predict.predictor import load_predictor

    return Backend(Index(project), load_predictor(project, wanted, device))


@dataclass
class Backend:
    """Answers for the images of an index. A model works on one image at a time."""

    index: Index
    predictor: Predictor
    turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> str:
        return self.predictor.by

    def suggest(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Suggest results that Label Studio shows for a task; an empty list where there is nothing to show."""
        data = task.get("data") or {}
        results, score = self._results(str(data.get("content_id")), data.get("slot"))
        return {"result": results, "score": score, "model_version": self.version}

    def _results(self, id: str, slot: str | None) -> tuple[list[ls_results.Result], float]:
        shown = {image.id: image for image in self.index.shown([id])}
        if id not in shown or (slot != REVIEW and self._is_audit(id)):
            return [], 0.0
        size = shown[id].width, shown[id].height
        if slot == REVIEW:
            return ls_results.of_label(shown[id].label, size), 1.0
        with self.turn:
            prediction = self.predictor.prediction(self.predictor.predict_image(self._pixels(id)))
        return ls_results.of_prediction(prediction, size), round(prediction.score, 4)

    def _is_audit(self, id: str) -> bool:
        """True for an audit pick. Its task does not say so, because annotators would read it there."""
        tags = {tag for document in self.index.documents([id], ["tags"]) for tag in document.get("tags") or ()}
        return bool(tags & {AUDIT, AUDIT_EXTRA})

    def _pixels(self, id: str) -> Any:
        (path,) = (document["filepath"] for document in self.index.documents([id], ["filepath"]))
        return pixels_of(Path(path).read_bytes(), self.index.project.config.limits.max_pixels)


@contextlib.contextmanager
def served(backend: Backend, host: str, port: int) -> Iterator[tuple[str, str]]:
    """Listening: the address, and the password that Label Studio has to give."""
    password = secrets.token_urlsafe(24)
    with listening(host, port, _routes(backend, password)) as url:
        yield url, password


@contextlib.contextmanager
def connected(ls_project: LabelStudioProject, url: str, password: str) -> Iterator[None]:
    """Label Studio asks us from now on, and no longer afterwards."""
    studio = ls_project.studio
    for old in studio.get("/api/ml/", project=ls_project.id):  # of a backend that was killed
        if old["title"] == TITLE:
            studio.ask("DELETE", f"/api/ml/{old['id']}")
    access = {"auth_method": "BASIC_AUTH", "basic_auth_user": USER, "basic_auth_pass": password}
    connection = studio.post("/api/ml/", {"project": ls_project.id, "url": url, "title": TITLE, **access})
    studio.ask("PATCH", f"/api/projects/{ls_project.id}/", json={"model_version": TITLE})
    try:
        yield
    finally:
        with contextlib.suppress(CurateError):
            studio.ask("DELETE", f"/api/ml/{connection['id']}")
            studio.ask("PATCH", f"/api/projects/{ls_project.id}/", json={"model_version": MODEL_VERSION})


# --- the routes -------------------------------------------------------------------------------------------------------


def _routes(backend: Backend, password: str) -> type[Routes]:
    class Suggestions(Routes):
        header, largest = "Authorization", LARGEST
        secret = "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()

        def read(self) -> tuple[int, dict[str, Any]]:
            route = self.path.partition("?")[0].rstrip("/")
            known: dict[str, dict[str, Any]] = {"/health": {"status": "UP", "model_class": TITLE}}
            known["/versions"] = {"versions": [backend.version]}
            return (200, known[route]) if route in known else (404, {})

        def answered(self, body: bytes) -> tuple[int, dict[str, Any]]:
            return _answered(backend, self.path, body)

    return Suggestions


def _answered(backend: Backend, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    route = path.partition("?")[0].rstrip("/")
    if route == "/setup":
        return 200, {"model_version": backend.version}
    if route != "/predict":
        return (200, {}) if route in ("/train", "/webhook", "/delete", "/validate") else (404, {})
    try:
        asked: Sequence[Mapping[str, Any]] = json.loads(body)["tasks"]
        return 200, {"results": [backend.suggest(task) for task in asked], "model_version": backend.version}
    except (CurateError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return 400, {"error": str(error)}
