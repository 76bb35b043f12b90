"""A small server of our own, for what Label Studio calls: a webhook, the ML backend."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from curate.errors import CurateError


@contextlib.contextmanager
def listening(host: str, port: int, routes: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address under which it answers, for as long as the block lasts."""
    try:
        server = ThreadingHTTPServer((host, port), routes)
    except OSError as error:
        raise CurateError(f"port {port} on {host}: {error.strerror}. Choose another with --port") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
