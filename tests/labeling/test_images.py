"""Which images a real Label Studio serves: those that were pushed, and nothing else of the machine."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from curate.index.dataset import Index
from curate.project import Project, load
from labeling import client, images, pull, push, results, tasks
from labeling.client import Studio
from labeling.images import LOCAL, MEDIA
from labeling.server import RunningServer
from tests.labeling import studio as ls_helpers
from tests.labeling.helpers import labels, ls_project_of, pushed, round_of, task_of, unlabelled
from tests.labeling.test_push_pull import SIZE, drawn


def sent(studio: Studio, address: str) -> httpx.Response:
    return client._send(studio.client, studio.url, "GET", address, follow_redirects=False)


def addresses(project: Project, studio: Studio) -> dict[str, str]:
    return {one.data["content_id"]: one.data["image"] for one in tasks.held(ls_project_of(project, studio))}


def file_of(project: Project, id: str) -> Path:
    (path,) = Index(project).dataset.match({"content_id": id}).values("filepath")
    return Path(path)


def media(project: Project, studio_server: RunningServer) -> Path:
    return studio_server.files / project.dataset_name / MEDIA


# --- what is served ---------------------------------------------------------------------------------------------------


def test_what_was_pushed_is_served_to_those_who_logged_in(
    indexed: Project, studio: Studio, studio_server: RunningServer
) -> None:
    ids = unlabelled(indexed)[:2]
    pushed(indexed, studio, ids)
    found = addresses(indexed, studio)
    for id in ids:
        answer = sent(studio, found[id])
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/png")
        assert answer.content == file_of(indexed, id).read_bytes()
        assert httpx.get(f"{studio.url}{found[id]}", trust_env=False).status_code == 401
    assert sorted(path.stem for path in media(indexed, studio_server).iterdir()) == sorted(ids), "nothing else is there"
    (storage,) = studio.get("/api/storages/localfiles/", project=ls_project_of(indexed, studio).id)
    assert storage["path"] == str(media(indexed, studio_server))


PLACES = ["/etc/passwd", "//etc/passwd", "../server/credentials.json", "secret.png", "{name}/secret.png"]
PLACES += ["{media}/../secret.png", "{media}/../../secret.png", "{media}x/secret.png", "{media}/../{name}x/secret.png"]
PLACES += ["{media}/../../../server/credentials.json", "{media}/%2e%2e/secret.png", "{media}\\..\\secret.png"]
PLACES += ["line/A/cam0", "{name}/line/A/cam0", "{media}/link/passwd", "{media}/"]


def test_nothing_else_is_served(indexed: Project, studio: Studio, studio_server: RunningServer) -> None:
    """Not even through links in a source, which earlier versions served as a tree."""
    source = indexed.root(indexed.source("line"))
    (source / "A" / "cam0" / "evildir").symlink_to("/etc")
    (source / "A" / "cam0" / "leak.png").symlink_to("/etc/passwd")
    pushed(indexed, studio, unlabelled(indexed)[:1])
    name = indexed.dataset_name
    for folder in (studio_server.files, studio_server.files / name, studio_server.files / f"{name}/{MEDIA}x"):
        folder.mkdir(exist_ok=True)
        (folder / "secret.png").write_bytes(b"secret")
    tree = ["A/cam0/evildir/passwd", "A/cam0/leak.png"]
    places = [*PLACES, *(f"{where}line/{path}" for where in ("", "{name}/", "{media}/") for path in tree)]
    for place in places:
        path = place.replace("{media}", f"{name}/{MEDIA}").replace("{name}", name)
        refused = sent(studio, f"{LOCAL}{path}")
        assert refused.status_code >= 400, path  # 500 for those that leave the document root: Django's own refusal
        assert not re.search(rb"secret|root:|password", refused.content), path
    (studio_server.files / "secret.png").unlink()


@pytest.mark.parametrize("images_as", ["local", "upload"])
def test_a_file_that_was_replaced_is_refused_until_it_is_indexed(
    indexed: Project, studio: Studio, images_as: str
) -> None:
    project = load(indexed.folder, {"labelstudio": {"images": images_as}})
    changed, linked, kept = ids = unlabelled(project)[:3]
    file_of(project, changed).write_bytes(file_of(project, kept).read_bytes())
    file_of(project, linked).unlink()
    file_of(project, linked).symlink_to(file_of(project, kept))
    round_of(project, ids)
    report = push.run(project, studio, push.PushRequest())
    assert report.created == 1
    told = {one["id"]: one["reason"] for one in report.refused}
    assert told.keys() == {changed, linked}
    assert all("changed since it was indexed. Run: curate index" in reason for reason in told.values())


def test_a_file_that_is_replaced_after_the_push_shows_what_was_pushed(indexed: Project, studio: Studio) -> None:
    id = unlabelled(indexed)[0]
    pushed(indexed, studio, [id])
    before = file_of(indexed, id).read_bytes()
    with file_of(indexed, id).open("r+b") as handle:  # in place: a hard link would show the new bytes
        handle.write(b"\0" * len(before))
    assert sent(studio, addresses(indexed, studio)[id]).content == before


# --- what earlier versions pushed -------------------------------------------------------------------------------------


def as_before(project: Project, studio: Studio, studio_server: RunningServer, ids: list[str]) -> dict[str, str]:
    """These images pushed as an earlier version did: a link to each source, and addresses of files below it."""
    round_of(project, ids)
    root = media(project, studio_server).parent
    push.run(project, studio, push.PushRequest())
    ls_project = ls_project_of(project, studio)
    for storage in studio.get("/api/storages/localfiles/", project=ls_project.id):
        studio.ask("DELETE", f"/api/storages/localfiles/{storage['id']}")
    for path in (root / MEDIA).iterdir():
        path.unlink()
    (root / "line").symlink_to(project.root(project.source("line")))
    about = {"project": ls_project.id, "path": str(root / "line"), "title": "line", "use_blob_urls": True}
    studio.post("/api/storages/localfiles/", about)
    references = {id: paths[0] for id, paths in Index(project).rows("paths")}
    for one in tasks.held(ls_project):
        path = references[one.data["content_id"]].replace(":", "/", 1)
        image = f"{LOCAL}{quote(f'{project.dataset_name}/{path}')}"
        studio.ask("PATCH", f"/api/tasks/{one.id}/", json={"data": {**one.data, "image": image}})
    old = addresses(project, studio)
    assert all(sent(studio, address).status_code == 200 for address in old.values())
    return old


@pytest.mark.parametrize("by", ["push", pytest.param("up", marks=pytest.mark.exhaustive)])
def test_old_tasks_get_new_addresses_and_the_links_go(
    indexed: Project, studio: Studio, studio_server: RunningServer, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    open_, done, gone = ids = unlabelled(indexed)[:3]
    old = as_before(indexed, studio, studio_server, ids)
    ls_helpers.annotate(studio, task_of(indexed, studio, done), results.of_label(drawn(), SIZE))
    pull.run(indexed, studio)
    file_of(indexed, gone).unlink()
    ask, patched = Studio.ask, []

    def dies(self: Studio, method: str, path: str, **more: object) -> object:
        patched.append(method)
        if method == "PATCH" and patched.count("PATCH") == 2:
            raise KeyboardInterrupt
        return ask(self, method, path, **more)

    again = (
        (lambda: push.run(indexed, studio, push.PushRequest()))
        if by == "push"
        else lambda: images.renew(indexed, studio)
    )
    monkeypatch.setattr(Studio, "ask", dies)
    with pytest.raises(KeyboardInterrupt):
        again()
    monkeypatch.undo()
    monkeypatch.setenv(images.ROOT, str(studio_server.files))
    monkeypatch.setenv(client.URL, studio.url)
    monkeypatch.setenv(client.KEY, studio.client._client_wrapper._tokens_client._api_key)
    again()
    new = addresses(indexed, studio)
    for id in (open_, done):
        assert new[id] != old[id]
        assert sent(studio, new[id]).content == file_of(indexed, id).read_bytes()
        assert sent(studio, old[id]).status_code == 404
    assert sent(studio, new[gone]).status_code == 404, "its file is not there either"
    (storage,) = studio.get("/api/storages/localfiles/", project=ls_project_of(indexed, studio).id)
    assert storage["path"] == str(media(indexed, studio_server))
    assert not (media(indexed, studio_server).parent / "line").is_symlink()
    assert pull.run(indexed, studio, full=True).annotations == 0
    assert labels(indexed)[done].digest == drawn().digest


@pytest.mark.exhaustive
def test_copies_that_wait_for_nobody_go_after_a_while(
    indexed: Project, studio: Studio, studio_server: RunningServer
) -> None:
    waiting, done, lately = ids = unlabelled(indexed)[:3]
    pushed(indexed, studio, ids)
    for id in (done, lately):
        ls_helpers.annotate(studio, task_of(indexed, studio, id), results.of_label(drawn(), SIZE))
    pull.run(indexed, studio)
    long_ago = time.time() - (images.KEPT_DAYS + 1) * 86400
    for path in media(indexed, studio_server).iterdir():
        if path.stem != lately:
            os.utime(path, (long_ago, long_ago))
    push.run(indexed, studio, push.PushRequest())
    images.sweep(Index(indexed), ls_project_of(indexed, studio))
    assert {path.stem for path in media(indexed, studio_server).iterdir()} == {waiting, lately}
