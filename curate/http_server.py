"""A small HTTP server of our own: the webhook, the ML backend, and a model that answers on this machine.

Anybody who reaches the port may send anything. So the secret is asked for before a body is read, and sizes, times and
threads are bounded: an over-long body is refused, a slow or silent caller hung up on, and one too many turned away.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from curate.errors import CurateError

CALLERS = 16  # that are served at the same time
DRAINED = 1 << 20  # bytes that are let pass after a refusal
SECONDS = 20.0  # in which a request has to be sent in full
EVERY = 0.1  # seconds between two looks for callers that are silent, and at whether to stop


class Routes(BaseHTTPRequestHandler):
    """Request handler. A subclass names the header that holds the secret, and answers requests that bear it."""

    server: Listener
    header: ClassVar[str]
    secret: ClassVar[str]
    largest: ClassVar[int]  # bytes of a body
    timeout = SECONDS  # of silence

    def read(self) -> tuple[int, Mapping[str, Any] | None]:
        """Answer a GET, for which no secret is needed: a status and JSON."""
        return 404, {}

    def answered(self, body: bytes) -> tuple[int, Mapping[str, Any] | None]:
        """Answer a POST with the right secret: a status and JSON."""
        raise NotImplementedError

    def do_GET(self) -> None:
        self._answer(*self.read())

    def do_POST(self) -> None:
        if not hmac.compare_digest(self.headers.get(self.header, "").encode(), self.secret.encode()):
            return self._refuse(401 if self.header == "Authorization" else 403, "the secret is missing or wrong")
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()):
            return self._refuse(400, "Content-Length is no number")
        if len(length) > len(str(self.largest)) or int(length) > self.largest:
            return self._refuse(413, f"more than {self.largest} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return self._refuse(400, "the body is shorter than its Content-Length")
        self.server.received(self.connection)
        return self._answer(*self.answered(body))

    def _refuse(self, status: int, why: str) -> None:
        """Let some of what was sent pass unread by anybody: a socket closed before that takes the answer with it."""
        self._answer(status, {"error": why})
        self.connection.shutdown(socket.SHUT_WR)
        left = DRAINED
        while left > 0 and (part := self.rfile.read1(min(left, 1 << 16))):
            left -= len(part)

    def _answer(self, status: int, told: Mapping[str, Any] | None) -> None:
        text = b"" if told is None else json.dumps(told).encode()
        self.send_response(status)
        if told is not None:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        """Its log would hold what strangers send."""


class Listener(ThreadingHTTPServer):
    """A thread for each caller, up to CALLERS; whoever has not sent a whole request after SECONDS is hung up on."""

    daemon_threads = True
    request_queue_size = 4 * CALLERS  # that wait to be taken on or turned away

    def __init__(self, address: tuple[str, int], routes: type[Routes]) -> None:
        super().__init__(address, routes)
        self.free = threading.Semaphore(CALLERS)
        self.since: dict[socket.socket, float] = {}  # callers whose request has not arrived yet

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.free.acquire(blocking=False):
            self.since[request] = time.monotonic()
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.received(request)
            self.free.release()

    def received(self, request: socket.socket) -> None:
        """The request is here: the answer may take its time."""
        self.since.pop(request, None)

    def service_actions(self) -> None:
        """Called by `serve_forever` every `EVERY` seconds."""
        for request, begun in list(self.since.items()):
            if time.monotonic() - begun > SECONDS:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hung up is nobody's fault; anything else is a bug, and shows its traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def listening(host: str, port: int, routes: type[Routes]) -> Iterator[str]:
    """The address under which it answers, for as long as the block lasts."""
    try:
        server = Listener((host, port), routes)
    except OSError as error:
        raise CurateError(f"port {port} on {host}: {error.strerror}. Choose another with --port") from None
    threading.Thread(target=server.serve_forever, args=(EVERY,), daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
