"""The connection: both kinds of tokens, every way to fail, and no token in any text."""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from curate.admin import setup
from curate.errors import CurateError
from curate.project import Project
from labeling import client, server
from labeling.client import NotFound, Studio, Unanswered
from labeling.server import RunningServer
from tests.labeling import studio as ls_helpers

SECRET = "0123456789abcdef0123456789abcdef01234567"
CHOICES = (
    '<View><Image name="image" value="$image"/><Choices name="c" toName="image"><Choice value="a"/></Choices></View>'
)
CHOSEN = [{"type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["a"]}}]


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose environment names no server."""
    for name in (client.URL, client.KEY):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "data").mkdir()
    return setup.write(tmp_path / "plant", [{"name": "line", "format": "images", "data": tmp_path / "data"}], ["crack"])


def refusal(error: BaseException, token: str) -> str:
    """All that a person or a log could see of it; the token is nowhere in there."""
    text = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    assert token not in text
    assert error.__cause__ is None
    return str(error)


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that is no Label Studio: its URL, and the requests that it got."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            asked.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer(self)

        do_GET = do_POST = handle_one

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.daemon_threads = True
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}", asked
        made.shutdown()


def reply(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


ME = b'{"id": 1, "email": "a@b.c"}'


def troubled(status: int) -> Answer:
    """Lets everybody in, then fails."""
    good, bad = reply(200, ME), reply(status, b'{"detail": "no luck"}')
    return lambda handler: (good if handler.path.endswith("whoami") else bad)(handler)


# --- which server -----------------------------------------------------------------------------------------------------


def test_the_environment_names_the_server(studio: Studio, studio_server: RunningServer, plain: Project) -> None:
    with pytest.raises(CurateError, match=r"'plant' is not running\. Run: curate labelstudio up"):
        client.connect(plain)  # `plain` came last and cleared the environment
    token = server.read_credentials(studio_server.folder).token
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(client.URL, studio_server.url + "/")
        patch.setenv(client.KEY, f" {token}\n")
        opened = client.connect(plain)
    assert (opened.url, opened.me) == (studio.url, studio.me)
    assert opened.me.email == server.EMAIL


@pytest.mark.parametrize(("there", "missing"), [(client.URL, client.KEY), (client.KEY, client.URL)])
def test_half_an_address_is_reported(plain: Project, monkeypatch: pytest.MonkeyPatch, there: str, missing: str) -> None:
    monkeypatch.setenv(there, SECRET)
    with pytest.raises(CurateError, match=f"{there} is set, but {missing} is not") as caught:
        client.connect(plain)
    refusal(caught.value, SECRET)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8080", "ftp://host", "http://", "http://h:99999", "http://a b", "http://[x"]
)
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(CurateError, match=r"is no address of a Label Studio: set LABEL_STUDIO_URL"):
        client.open_studio(url, SECRET)


def test_a_password_in_the_address_is_not_repeated() -> None:
    with pytest.raises(CurateError) as caught:
        client.open_studio(f"http://me:{SECRET}@host:8080", "token")
    assert "//...@host:8080" in refusal(caught.value, SECRET)


@pytest.mark.slow
def test_nobody_answers() -> None:
    with pytest.raises(CurateError, match="cannot reach Label Studio") as caught:
        client.open_studio(f"http://127.0.0.1:{server.any_port()}", SECRET)
    refusal(caught.value, SECRET)


def test_no_proxy_leads_to_this_machine(
    studio: Studio, studio_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.any_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert client.open_studio(studio.url, server.read_credentials(studio_server.folder).token).me == studio.me


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"[]", b'{"id": 1}'])
def test_another_program_answers(body: bytes) -> None:
    with answering(reply(200, body)) as (url, _), pytest.raises(CurateError, match="is no Label Studio"):
        client.open_studio(url, SECRET)


def test_a_redirect_would_turn_posts_into_gets() -> None:
    with answering(reply(301, Location="https://studio.example.com/api")) as (url, asked):
        with pytest.raises(CurateError, match=r"redirects to https://studio\.example\.com: set LABEL_STUDIO_URL"):
            client.open_studio(url, SECRET)
        assert len(asked) == 1


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_wrong_token(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(CurateError) as caught:
        client.open_studio(studio.url, SECRET)
    text = refusal(caught.value, SECRET)
    assert "refuses the token (401" in text
    assert "Account & Settings > Access Token" in text
    assert "HTTP Request: GET" in caplog.text  # the log was listened to
    assert SECRET not in caplog.text


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "schlüssel", "\x00", ""])
def test_a_token_that_no_header_can_carry(studio: Studio, token: str) -> None:
    with pytest.raises(CurateError, match="copy the token again") as caught:
        client.open_studio(studio.url, token)
    assert not token or token not in str(caught.value)


def test_a_good_token_is_in_no_text(
    studio: Studio, studio_server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    token = server.read_credentials(studio_server.folder).token
    with caplog.at_level(logging.DEBUG):
        opened = client.open_studio(studio.url, token)
        opened.get("/api/projects/")
        with contextlib.suppress(NotFound), client.explained(opened):
            opened.client.projects.get(id=10**6)
    assert caplog.records
    assert token not in caplog.text
    assert token not in repr(opened) + str(opened)
    assert token not in repr(server.read_credentials(studio_server.folder))


def test_a_personal_token_is_renewed_and_may_be_revoked(studio: Studio, caplog: pytest.LogCaptureFixture) -> None:
    person = ls_helpers.annotator(studio, "petra")
    token = person.post("/api/token/", {})["token"]
    with caplog.at_level(logging.DEBUG):
        opened = client.open_studio(studio.url, token)
        assert opened.me == person.me
        opened.client._client_wrapper._tokens_client._access_token = (
            None  # it lives for minutes: the SDK fetches another
        )
        assert opened.client.users.whoami().email == opened.get("/api/current-user/whoami")["email"]
        person.post("/api/token/blacklist/", {"refresh": token})
        with pytest.raises(CurateError, match=r"refuses the token \(401") as caught:
            client.open_studio(studio.url, token)
    refusal(caught.value, token)
    assert token not in caplog.text


# --- failures of a call -----------------------------------------------------------------------------------------------


def test_what_is_not_there(studio: Studio) -> None:
    with pytest.raises(NotFound, match="404"):
        studio.get("/api/projects/1000000")
    with pytest.raises(NotFound, match="404"), client.explained(studio):
        studio.client.projects.get(id=10**6)


def test_the_server_s_reason_is_reported(studio: Studio) -> None:
    with pytest.raises(CurateError, match=r"refuses that \(400.*label_config"):
        studio.post("/api/projects/", {"title": "broken", "label_config": "<View>"})


@pytest.mark.parametrize(
    ("status", "kind"), [(403, CurateError), (409, CurateError), (500, Unanswered), (502, Unanswered)]
)
def test_a_post_is_sent_once(status: int, kind: type[CurateError]) -> None:
    """By itself the SDK repeats what failed with 5xx or 409: importing again would duplicate."""
    with answering(troubled(status)) as (url, asked):
        opened = client.open_studio(url, SECRET)
        with pytest.raises(CurateError, match=f"{status}: no luck") as caught:
            opened.post("/api/projects/1/import", [])
        assert type(caught.value) is kind
        with pytest.raises(CurateError, match=str(status)), client.explained(opened):
            opened.client.projects.create(title="abc", request_options=client.ONCE)
    assert [line.split()[0] for line in asked] == ["GET", "POST", "POST"]


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        reply(200, ME)(handler) if handler.path.endswith("whoami") else wait.wait(20)

    monkeypatch.setattr(client, "TIMEOUT", 0.3)
    with answering(answer) as (url, asked):
        opened = client.open_studio(url, SECRET)
        with pytest.raises(Unanswered, match=r"did not answer in time.*Run the command again") as caught:
            opened.post("/api/projects/1/import", [])
        wait.set()
    refusal(caught.value, SECRET)
    assert len(asked) == 2


def test_a_connection_that_breaks() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        reply(200, ME)(handler) if handler.path.endswith("whoami") else handler.connection.close()

    with answering(answer) as (url, _):
        opened = client.open_studio(url, SECRET)
        with pytest.raises(Unanswered, match="lost the connection"):
            opened.post("/api/projects/1/import", [])


# --- the helpers of other tests ---------------------------------------------------------------------------------------


def test_people_are_different_people(studio: Studio) -> None:
    number = ls_helpers.project(studio, "who labels", CHOICES)
    (task,) = ls_helpers.import_tasks(studio, number, [{"data": {"image": "/x.png"}}])
    anna, bob = ls_helpers.annotator(studio, "anna"), ls_helpers.annotator(studio, "bob")
    assert ls_helpers.annotator(studio, "anna").me == anna.me
    assert len({studio.me, anna.me, bob.me}) == 3
    made = ls_helpers.annotate(anna, task, CHOSEN, lead_time=7.5)
    skipped = ls_helpers.annotate(bob, task, [], cancelled=True)
    ls_helpers.change(anna, made["id"], [])
    found = {a["completed_by"]["id"]: a for a in ls_helpers.task(studio, task)["annotations"]}
    assert (found[anna.me.id]["result"], found[anna.me.id]["lead_time"]) == ([], 9.0)
    assert found[bob.me.id]["was_cancelled"]
    ls_helpers.withdraw(bob, skipped["id"])
    assert [a["id"] for a in ls_helpers.task(studio, task)["annotations"]] == [made["id"]]
