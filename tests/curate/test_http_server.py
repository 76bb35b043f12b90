"""Hostile requests to the webhook and the ML backend: none costs memory, threads or a traceback."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest

from curate import http_server
from curate.http_server import Routes

SECRET = "the secret"
LARGEST = 1000


class Echo(Routes):
    header, secret, largest = "X-Secret", SECRET, LARGEST

    def answered(self, body: bytes) -> tuple[int, Mapping[str, Any]]:
        return 200, {"bytes": len(body)}


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(http_server, "SECONDS", 1.0)
    monkeypatch.setattr(Routes, "timeout", 1.0)
    with http_server.listening("127.0.0.1", 0, Echo) as url:
        parts = urlsplit(url)
        yield str(parts.hostname), int(parts.port or 0)


def answer(address: tuple[str, int], request: bytes) -> tuple[int, Any]:
    """Sent as it is: a well-behaved client would correct it."""
    with socket.create_connection(address, timeout=30) as caller:
        caller.sendall(request)
        told = http.client.HTTPResponse(caller)
        told.begin()
        return told.status, json.loads(told.read() or b"null")


def post(length: object, secret: str = SECRET, body: bytes = b"") -> bytes:
    return f"POST / HTTP/1.1\r\nX-Secret: {secret}\r\nContent-Length: {length}\r\n\r\n".encode() + body


def send_until_hung_up(caller: socket.socket, part: bytes, pause: float) -> None:
    with contextlib.suppress(OSError):
        while True:
            caller.sendall(part)
            time.sleep(pause)


def test_what_came_with_the_secret_is_answered(address: tuple[str, int]) -> None:
    assert answer(address, post(5, body=b"12345")) == (200, {"bytes": 5})
    assert answer(address, post(LARGEST, body=b"x" * LARGEST)) == (200, {"bytes": LARGEST})
    assert answer(address, b"POST / HTTP/1.1\r\nX-Secret: the secret\r\n\r\n") == (200, {"bytes": 0})


@pytest.mark.parametrize("length", [-1, "+5", "5.0", "0x10", "", "a", "1e3", "²", "5, 5"])
def test_a_length_that_is_no_number(
    address: tuple[str, int], capfd: pytest.CaptureFixture[str], length: object
) -> None:
    status, told = answer(address, post(length, body=b"12345"))
    assert (status, told) == (400, {"error": "Content-Length is no number"})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("length", [LARGEST + 1, 10**12, "9" * 5000])
def test_a_body_that_is_too_long_is_not_read(address: tuple[str, int], length: object) -> None:
    assert answer(address, post(length, body=b"x" * 5000))[0] == 413


def test_a_body_that_is_too_short(address: tuple[str, int], capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(address, timeout=30) as caller:
        caller.sendall(post(10, body=b"12345"))
        caller.shutdown(socket.SHUT_WR)
        assert caller.recv(100).startswith(b"HTTP/1.0 400")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("length", [-1, 5, 10**12])
def test_the_secret_is_asked_for_before_anything_is_read(address: tuple[str, int], length: int) -> None:
    status, told = answer(address, post(length, "wrong"))
    assert (status, told) == (403, {"error": "the secret is missing or wrong"})


def test_an_endless_body_costs_no_memory(address: tuple[str, int], capfd: pytest.CaptureFixture[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for secret in ("wrong", SECRET):
        with socket.create_connection(address, timeout=30) as caller:
            caller.sendall(post(-1, secret))
            send_until_hung_up(caller, b"x" * (1 << 20), 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000, "kB"
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_silent_and_slow_callers_are_hung_up_on(address: tuple[str, int], capfd: pytest.CaptureFixture[str]) -> None:
    def drip(caller: socket.socket) -> None:
        caller.sendall(post(LARGEST))
        send_until_hung_up(caller, b"x", 0.1)  # never silent for long

    opened = (socket.create_connection(address, timeout=30) for _ in range(2))
    with next(opened) as silent, next(opened) as slow:
        dripping = threading.Thread(target=drip, args=(slow,))
        dripping.start()
        assert silent.recv(100) == b""
        assert b"200" not in slow.recv(100)
        dripping.join(30)
        assert not dripping.is_alive()
    assert answer(address, post(1, body=b"1")) == (200, {"bytes": 1})
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_idle_callers_hold_a_bounded_number_of_threads(address: tuple[str, int]) -> None:
    before = threading.active_count()
    idle = [socket.create_connection(address, timeout=30) for _ in range(4 * http_server.CALLERS)]
    try:
        for one in idle[http_server.CALLERS :]:
            assert one.recv(100) == b"", "turned away"
        assert threading.active_count() - before <= http_server.CALLERS
        for one in idle[: http_server.CALLERS]:
            assert one.recv(100) == b"", "hung up on, and the place is free again"
        assert answer(address, post(1, body=b"1")) == (200, {"bytes": 1})
    finally:
        for one in idle:
            one.close()
