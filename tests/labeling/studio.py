"""Playing the people who label: further users, and what they submit, through the same API as the browser's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from labeling.client import Studio, open_studio

Results = Sequence[Mapping[str, Any]]
PASSWORD = "only-for-tests-1"


def projects(studio: Studio) -> list[int]:
    return [one["id"] for one in studio.get("/api/projects/", page_size=1000)["results"]]


_tokens: dict[tuple[str, str], str] = {}  # of (server, email): logging in costs half a second of hashing


def annotator(studio: Studio, name: str) -> Studio:
    """Another person of the same organisation with a token of their own; the same one for the same name."""
    email = f"{name}@example.com"
    if (studio.url, email) not in _tokens:
        _tokens[studio.url, email] = _token(studio, email)
    return open_studio(studio.url, _tokens[studio.url, email])


def _token(studio: Studio, email: str) -> str:
    with httpx.Client(base_url=studio.url, trust_env=False, timeout=60, follow_redirects=True) as browser:
        page = "/user/login/" if email in emails(studio) else studio.get("/api/invite")["invite_url"]
        hidden = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', browser.get(page).raise_for_status().text)
        assert hidden, page
        form = {"csrfmiddlewaretoken": hidden[1], "email": email, "password": PASSWORD}
        browser.post(page, data=form).raise_for_status()
        return str(browser.get("/api/current-user/token").raise_for_status().json()["token"])


def emails(studio: Studio) -> set[str]:
    return {user["email"] for user in studio.get("/api/users/")}


def project(studio: Studio, title: str, config: str, **more: Any) -> int:
    return int(studio.post("/api/projects/", {"title": title, "label_config": config, **more})["id"])


def import_tasks(studio: Studio, number: int, tasks: Sequence[Mapping[str, Any]]) -> list[int]:
    """The ids of the new tasks, in the order in which they were given."""
    return list(studio.post(f"/api/projects/{number}/import?return_task_ids=true", list(tasks))["task_ids"])


def annotate(
    studio: Studio, task: int, results: Results, lead_time: float = 5.0, cancelled: bool = False, **more: Any
) -> dict[str, Any]:
    """Submit; with `cancelled`, skip. `more`, for example: parent_prediction=7."""
    made = {"result": list(results), "lead_time": lead_time, "was_cancelled": cancelled, **more}
    return dict(studio.post(f"/api/tasks/{task}/annotations/", made))


def change(studio: Studio, annotation: int, results: Results, lead_time: float = 9.0) -> dict[str, Any]:
    """Submit again what was submitted before."""
    changed = {"result": list(results), "lead_time": lead_time}
    return dict(studio.ask("PATCH", f"/api/annotations/{annotation}/", json=changed))


def withdraw(studio: Studio, annotation: int) -> None:
    studio.ask("DELETE", f"/api/annotations/{annotation}/")


def task(studio: Studio, number: int) -> dict[str, Any]:
    """The task with its annotations and predictions."""
    return dict(studio.get(f"/api/tasks/{number}/"))
