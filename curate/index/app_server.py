"""A restricted server of the FiftyOne App; `curate app` runs it in place of FiftyOne's own.

FiftyOne's server sends any file of the machine to whoever reaches its port (`/media?filepath=/etc/passwd`), answers to
any `Host` (so a web page can talk to it under a name of its own: DNS rebinding), lists folders, and writes masks to any
path. This one sends only images that the project's dataset knows, answers only to names of this machine and only to
pages of its own; where it listens on more than the loopback address, only to clients with the token.
"""

from __future__ import annotations

import argparse
import base64
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

DATASET, TOKEN = "CURATE_APP_DATASET", "CURATE_APP_TOKEN"  # environment variables: other users can see a command line
# The field that names a file, by kind of label.
MASKS = {
    "Detection": "mask_path",
    "Detections": "detections.mask_path",
    "Segmentation": "mask_path",
    "Heatmap": "map_path",
}


def is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


class Guard:
    """An ASGI application that passes allowed requests to `app` and refuses all others with the reason."""

    def __init__(self, app: Any, address: str, port: int, token: str, is_known: Callable[[str], bool]) -> None:
        self.app, self.token, self.is_known = app, token, is_known
        self.cookie = f"curate-app-{port}"
        self.names = {"localhost", address.lower()}
        if not is_loopback(address):
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":  # FiftyOne has no websockets
            await (await self._answer(scope))(scope, receive, send)

    async def _answer(self, scope: Any) -> Any:
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse, RedirectResponse

        request = Request(scope)
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not self._is_ours(host):
            names = ", ".join(sorted(self.names))
            return PlainTextResponse(f"'{host}' is not a name of this App: {names}. See curate app --address\n", 421)
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("refused: the request comes from a page of another site\n", 403)
        if self.token and secrets.compare_digest(request.query_params.get("token", "").encode(), self.token.encode()):
            rest = urlencode([pair for pair in request.query_params.multi_items() if pair[0] != "token"])
            redirect = RedirectResponse(f"{request.url.path}?{rest}".rstrip("?"), 303)
            redirect.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
            return redirect
        if self.token and not self._has_token(request):
            return PlainTextResponse("open the whole link that 'curate app' printed, with its token\n", 401)
        if scope["path"].endswith("/commit-mask"):
            return PlainTextResponse("refused: masks are kept in the index, not in files\n", 403)
        if scope["path"] == "/media" and request.method != "OPTIONS":
            path = request.query_params.get("filepath", "")
            if not await run_in_threadpool(self.is_known, path):
                return PlainTextResponse("refused: the project's dataset has no such image\n", 403)
        return self.app

    def _is_ours(self, host: str) -> bool:
        """Return True for an address, or a name that nobody else can point at this machine."""
        name = ""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
            return ip_address(name).is_loopback or bool(self.token)
        except ValueError:
            return name in self.names

    def _has_token(self, request: Any) -> bool:
        """Return True if the token is in a browser's cookie, or is the password of FiftyOne's own session."""
        basic = base64.b64encode(f"curate:{self.token}".encode()).decode()
        given = (request.cookies.get(self.cookie, ""), request.headers.get("authorization", "").removeprefix("Basic "))
        wanted = (self.token, basic)
        return any(secrets.compare_digest(a.encode(), b.encode()) for a, b in zip(given, wanted, strict=True))


def is_known(path: str, dataset: Mapping[str, Any], samples: Any) -> bool:
    """Return True if the dataset names this file, as an image or a label's mask, and it is an image: an edit in the App
    can name any file, but cannot make it an image."""
    indexed, others = {"filepath": path}, [{name: path} for name in _media_fields(dataset)]
    sample = samples.find_one(indexed, {"_id": 1}) or (others and samples.find_one({"$or": others}, {"_id": 1}))
    return bool(sample) and _is_image(path)


def _media_fields(dataset: Mapping[str, Any]) -> Iterator[str]:
    yield from set((dataset.get("app_config") or {}).get("media_fields") or ()) - {"filepath"}
    for field in dataset.get("sample_fields") or ():
        kind = str(field.get("embedded_doc_type") or "").rpartition(".")[2]
        if kind in MASKS:
            yield f"{field['name']}.{MASKS[kind]}"


def _is_image(path: str) -> bool:
    from PIL import Image

    try:
        if not Path(path).is_file():
            return False
        with Image.open(path):
            return True
    except Exception:  # decoders raise anything over a broken file
        return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--address", default="127.0.0.1")
    arguments = parser.parse_args()
    os.environ.pop("FIFTYONE_DISABLE_SERVICES", None)
    os.environ["FIFTYONE_SERVER"] = "1"

    import fiftyone as fo
    from fiftyone.server import main as server

    name, token = os.environ[DATASET], os.environ.pop(TOKEN, "")

    def known(path: str) -> bool:
        db = fo.core.odm.get_db_conn()
        dataset = db.datasets.find_one({"name": name})
        return bool(dataset) and is_known(path, dataset, db[dataset["sample_collection_name"]])

    _refuse_folder_listing()
    server.app.debug = False  # no tracebacks for visitors
    server.app = Guard(server.app, arguments.address, arguments.port, token, known)
    server.start_server(port=arguments.port, address=arguments.address)


def _refuse_folder_listing() -> None:
    import fiftyone.operators.server as operators

    execute = operators.execute_or_delegate_operator

    async def without_listing(uri: str, *rest: Any, **more: Any) -> Any:
        if uri.rpartition("/")[2] == "list_files":
            raise operators.HTTPException(403, "curate app lists no folders")
        return await execute(uri, *rest, **more)

    operators.execute_or_delegate_operator = without_listing


if __name__ == "__main__":
    main()
