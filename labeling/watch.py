"""`curate watch`: pull as annotations come. Polling always works; a webhook, where there is one, wakes it sooner."""

from __future__ import annotations

import contextlib
import secrets
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

from curate.errors import CurateError
from curate.files import ProjectBusy, writer_lock
from curate.http_server import Routes, listening
from curate.index import app_views, database
from curate.project import Project
from labeling import pull, remote_project, tasks
from labeling.client import Studio, Unanswered, Unreachable
from labeling.pull import PullReport
from labeling.remote_project import LabelStudioProject

WHOLE = 600.0  # seconds after which a pull is made even if nothing seems to have changed
HEADER = "X-Curate-Secret"
ACTIONS = ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"]
LARGEST = 1 << 20  # bytes of a webhook's body, which nobody reads
Tell = Callable[[PullReport], None]


def run(
    project: Project,
    studio: Studio,
    every: float,
    tell: Tell,
    warn: Callable[[str], None],
    wake: threading.Event | None = None,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Pull whenever something changed, until Ctrl-C. A server or a shared database that goes away is waited for."""
    from pymongo.errors import ConnectionFailure

    wake, last = wake or threading.Event(), float("-inf")
    while not until():
        try:
            if time.monotonic() - last > WHOLE or _changed(project, studio):
                last = _pulled(project, studio, tell, last)
        except (Unreachable, Unanswered, ProjectBusy) as error:
            warn(f"{error}; trying again in {every:g} s")
        except ConnectionFailure as error:
            if database.is_embedded():  # nobody starts it again on the same port
                raise
            warn(f"lost the database ({textwrap.shorten(str(error), 100)}); trying again in {every:g} s")
        wake.wait(every)
        wake.clear()


def _changed(project: Project, studio: Studio) -> bool:
    """One small question to the server."""
    ls_project = remote_project.find(project, studio)
    return ls_project is None or ls_project.cursor is None or tasks.changed(ls_project, ls_project.cursor)


def _pulled(project: Project, studio: Studio, tell: Tell, last: float) -> float:
    with writer_lock(project.work, "curate watch"):
        report = pull.run(project, studio)
        if report.images:
            app_views.arrange(project)
    if report.images or last == float("-inf"):
        tell(report)
    return time.monotonic()


# --- the webhook ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def webhook(ls_project: LabelStudioProject, host: str, port: int, wake: threading.Event) -> Iterator[str]:
    """Label Studio calls us as soon as somebody submits. The address, once both sides know it; undone afterwards."""
    secret = secrets.token_urlsafe(24)
    with listening(host, port, _listener(secret, wake)) as url:
        about = {"project": ls_project.id, "url": f"{url}/", "headers": {HEADER: secret}, "send_payload": False}
        hook = ls_project.studio.post("/api/webhooks/", about | {"send_for_all_actions": False, "actions": ACTIONS})
        try:
            yield url
        finally:
            with contextlib.suppress(CurateError):  # a server that is gone calls nobody
                ls_project.studio.ask("DELETE", f"/api/webhooks/{hook['id']}/")


def _listener(password: str, wake: threading.Event) -> type[Routes]:
    class Webhook(Routes):
        header, secret, largest = HEADER, password, LARGEST

        def answered(self, body: bytes) -> tuple[int, None]:
            wake.set()
            return 204, None

    return Webhook
