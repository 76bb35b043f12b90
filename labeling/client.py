"""The connection to a Label Studio: the one that LABEL_STUDIO_URL names, else the project's own.

Tokens never get into a text: not into an error, nor into a log. Whatever goes wrong on the way is a `CurateError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from curate.errors import CurateError
from curate.project import Project
from labeling import server

if TYPE_CHECKING:
    import httpx
    from label_studio_sdk import LabelStudio
    from label_studio_sdk.core.request_options import RequestOptions

URL = "LABEL_STUDIO_URL"
KEY = "LABEL_STUDIO_API_KEY"
TIMEOUT = 300
# Give this to every call of the SDK that writes. By itself it repeats a POST that failed with 5xx, and importing again
# duplicates: a server that answers 502 or not at all may have stored everything.
ONCE: RequestOptions = {"max_retries": 0, "timeout_in_seconds": TIMEOUT}


class NotFound(CurateError):
    """The server knows no such thing, or this user may not see it."""


class Unreachable(CurateError):
    """Nobody listens there: nothing was done."""


class Unanswered(CurateError):
    """No answer, or the answer of a server in trouble: what was asked may have been done nevertheless."""


@dataclass(frozen=True)
class User:
    id: int
    email: str


@dataclass(frozen=True)
class Studio:
    """A Label Studio that accepted our token."""

    url: str
    client: LabelStudio = field(repr=False)
    me: User

    def get(self, path: str, **params: Any) -> Any:
        """The JSON that the server answers, without the SDK's models, which cost more than the answer."""
        return self.ask("GET", path, params=params)

    def post(self, path: str, json: Any) -> Any:
        """Sent once, never repeated."""
        return self.ask("POST", path, json=json)

    def hash_of(self, path: str, largest: int) -> str:
        """SHA-256 of what the server sends; read in parts, and refused beyond `largest` bytes."""
        digest, size = hashlib.sha256(), 0
        with explained(self), _stream(self.client, self.url, path) as answer:
            answer.raise_for_status()
            for part in answer.iter_bytes():
                size += len(part)
                if size > largest:
                    raise CurateError(f"{path}: more than {largest} bytes")
                digest.update(part)
        return digest.hexdigest()

    def ask(self, method: str, path: str, **more: Any) -> Any:
        with explained(self):
            return _json(_send(self.client, self.url, method, path, **more), self.url)


def connect(project: Project) -> Studio:
    """The server of LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY, else the project's own, once it accepts the token."""
    url, token = _from_environment() or _from_own_server(project)
    return open_studio(url, token)


def open_studio(url: str, token: str) -> Studio:
    """Both kinds of tokens work: the legacy one, and the personal one that the SDK trades for short-lived ones."""
    url, token = _checked_url(url), _checked_token(token)
    with _explained(url, token):
        client = _client(url, token)
        answer = _send(client, url, "GET", "/api/current-user/whoami", follow_redirects=False)
        if answer.is_redirect:
            raise CurateError(f"Label Studio at {url} redirects to {_target(answer)}: set {URL} to that address")
        return Studio(url, client, _user(_json(answer, url), url))


def external() -> bool:
    """True if the environment names a server, so that the project's own is not used."""
    return bool(os.environ.get(URL) or os.environ.get(KEY))


def _from_environment() -> tuple[str, str] | None:
    if not external():
        return None
    for name, other in ((URL, KEY), (KEY, URL)):
        if not os.environ.get(name, "").strip():
            raise CurateError(f"{other} is set, but {name} is not: set both, or none to use the project's own server")
    return os.environ[URL], os.environ[KEY]


def status(project: Project) -> dict[str, Any]:
    """Facts of the server that the commands use, and whether it answers; never raises for one that does not."""
    served = None if external() else server.find(project)
    facts: dict[str, Any] = {"external": external(), "running": False, "url": os.environ.get(URL)}
    facts |= {"version": None, "projects": None, "problem": None}
    if served:
        facts |= {"url": served.url, "pid": served.pid, "folder": str(served.folder), "log": str(served.log)}
    try:
        studio = connect(project)
        release = studio.get("/api/version/")["release"]
        facts |= {"running": True, "url": studio.url, "version": release, "user": studio.me.email}
        facts["projects"] = studio.get("/api/projects/", page_size=1)["count"]
    except CurateError as error:
        facts["problem"] = str(error)
    return facts


def _from_own_server(project: Project) -> tuple[str, str]:
    served = server.find(project)
    if served is None:
        remedy = f"Run: curate labelstudio up. Or set {URL} and {KEY}"
        raise CurateError(f"the Label Studio of project '{project.name}' is not running. {remedy}")
    return served.url, server.read_credentials(served.folder).token


def _checked_url(url: str) -> str:
    url = url.strip().rstrip("/")
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        plain = "@" not in parts.netloc and not re.search(r"\s", url) and parts.port != 0
        if parts.scheme in ("http", "https") and parts.hostname and plain:
            return url
    shown = re.sub(r"//.*@", "//...@", url)
    raise CurateError(f"'{shown}' is no address of a Label Studio: set {URL} to http://HOST:PORT, without a user name")


def _checked_token(token: str) -> str:
    """HTTP libraries print a header that they cannot send, and the token with it: so it is refused before."""
    token = token.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise CurateError(f"{KEY} holds a blank or a character that no token has; copy the token again")
    return token


def _client(url: str, token: str) -> LabelStudio:
    import httpx
    from label_studio_sdk import LabelStudio

    here = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    wait = httpx.Timeout(TIMEOUT, connect=10)
    # `label-studio start` sends headers and body apart: on a connection that was used before, the body waits 40 ms for
    # this machine's delayed acknowledgement of the headers. A new connection costs nothing here.
    limits = httpx.Limits(max_keepalive_connections=0 if here else None)
    http = httpx.Client(timeout=wait, limits=limits, follow_redirects=True, trust_env=not here)  # no proxy leads here
    # With the slash, a server below a path (https://host/studio) also refreshes personal tokens where it should.
    make: Any = LabelStudio  # its constructor has no type hints
    client: LabelStudio = make(base_url=f"{url}/", api_key=token, httpx_client=http, timeout=TIMEOUT)
    return client


def _send(client: LabelStudio, url: str, method: str, path: str, **more: Any) -> httpx.Response:
    """Through the SDK's own connection, and with its headers: it renews personal tokens."""
    wrapper = client._client_wrapper
    address = f"{url}/{path.lstrip('/')}"
    return wrapper.httpx_client.httpx_client.request(method, address, headers=wrapper.get_headers(), **more)


def _stream(client: LabelStudio, url: str, path: str) -> contextlib.AbstractContextManager[httpx.Response]:
    wrapper = client._client_wrapper
    http: httpx.Client = wrapper.httpx_client.httpx_client
    return http.stream("GET", f"{url}/{path.lstrip('/')}", headers=wrapper.get_headers())


def _json(answer: httpx.Response, url: str) -> Any:
    answer.raise_for_status()
    if not answer.content:
        return None
    try:
        return answer.json()
    except ValueError:
        raise _stranger(url) from None


def _user(answer: Any, url: str) -> User:
    if not isinstance(answer, dict) or not {"id", "email"} <= answer.keys():
        raise _stranger(url)
    return User(answer["id"], answer["email"])


def _stranger(url: str) -> CurateError:
    return CurateError(f"what answers at {url} is no Label Studio: check {URL}")


def _target(answer: httpx.Response) -> str:
    target = urlsplit(str(answer.headers.get("location", "")))
    return f"{target.scheme}://{target.netloc}" if target.netloc else "another page"


@contextlib.contextmanager
def explained(studio: Studio) -> Iterator[None]:
    """Any failure of a call inside, by the SDK or not, becomes a `CurateError` that says what to do."""
    with _explained(studio.url, studio.client._client_wrapper._tokens_client._api_key):
        yield


@contextlib.contextmanager
def _explained(url: str, token: str) -> Iterator[None]:
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _refused(url, error.response.status_code, _reason(_body(error.response), token)) from None
    except ApiError as error:
        raise _refused(url, error.status_code or 0, _reason(error.body, token)) from None
    except httpx.ConnectError:
        raise Unreachable(f"cannot reach Label Studio at {url}. {_start_it(url)}") from None
    except httpx.TimeoutException:
        again = "It may have done what was asked. Run the command again: it completes what is left"
        raise Unanswered(f"Label Studio at {url} did not answer in time. {again}") from None
    except httpx.HTTPError as error:
        again = "Run the command again: it completes what is left"
        raise Unanswered(f"lost the connection to Label Studio at {url} ({type(error).__name__}). {again}") from None


def _start_it(url: str) -> str:
    if os.environ.get(URL):
        return f"Is it running, and is {URL} right?"
    return "Run: curate labelstudio up"


def _refused(url: str, status: int, reason: str) -> CurateError:
    if status == 401:
        remedy = f"make a new one under Account & Settings > Access Token and set {KEY}"
        remedy = remedy if os.environ.get(URL) else "run: curate labelstudio up"
        return CurateError(f"Label Studio at {url} refuses the token (401{reason}): {remedy}")
    if status == 403:
        return CurateError(f"Label Studio at {url} does not allow this user to do that (403{reason})")
    if status == 404:
        return NotFound(f"Label Studio at {url} knows nothing of that (404{reason})")
    if status >= 500:
        again = "Its log says more; run the command again: it completes what is left"
        return Unanswered(f"Label Studio at {url} failed ({status}{reason}). {again}")
    return CurateError(f"Label Studio at {url} refuses that ({status}{reason})")


def _body(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _reason(body: Any, token: str) -> str:
    """Return the server's own error message, shortened."""
    if not isinstance(body, dict):
        return ""
    details = body.get("validation_errors") or body.get("detail") or ""
    text = " ".join(_flat(details).replace(token, "...").split())
    return f": {text[:200]}" if text else ""


def _flat(details: Any) -> str:
    """Lists and tables of complaints as one line."""
    if isinstance(details, dict):
        own = ((name, _flat(text)) for name, text in details.items())
        return "; ".join(text if name == "non_field_errors" else f"{name}: {text}" for name, text in own)
    return ", ".join(map(_flat, details)) if isinstance(details, list) else str(details)
