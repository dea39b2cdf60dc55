"""Connections that cost something and bring nothing: each is closed in its time, and the others go on."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time

import pytest

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.connections import ConnectionLimits
from tests.server.serving import SUM, Serving, serving
from tests.server.test_limits import wait_until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def connected(server: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.settings.port), timeout=10)


def end_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    while more := connection.recv(1 << 16):
        found += more
    return found


def what_is_left(connection: socket.socket) -> bytes:
    """What has come, until the server's end of the connection is gone."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(1 << 16):
            found += more
    return found


def test_headers_that_do_not_come(llm: LLM) -> None:
    with serving(llm, connections=ConnectionLimits(head_s=0.2)) as server:
        for begun in (b"", b"POST ", HEAD):
            with connected(server) as silent:
                silent.sendall(begun)
                began = time.monotonic()
                assert end_of(silent) == b""
                assert 0.1 < time.monotonic() - began < 5
        with connected(server) as second:
            second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            said = b""
            while b"}" not in said:
                said += second.recv(1000)
            assert b"200 OK" in said
            began = time.monotonic()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                while time.monotonic() < began + 10:  # the next request comes a byte at a time
                    second.sendall(b"x")
                    time.sleep(0.01)
        assert server.get("/health").status_code == 200


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n{}"])
def test_headers_that_are_too_long(server: Serving, end: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(HEAD + b"x: " + b"y" * 20_000 + end)
        said = end_of(connection)
        assert said.startswith(b"HTTP/1.1 400"), said
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_too_many_connections(llm: LLM) -> None:
    with serving(llm, connections=ConnectionLimits(n=2)) as server:
        with connected(server) as first, connected(server), connected(server) as third:
            said = end_of(third)
            head, _, body = said.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable") and b"retry-after: 5" in head
            assert json.loads(body)["error"]["code"] == "too_many_connections"
            first.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in first.recv(1000)
        wait_until(lambda: server.get("/health").status_code == 200)


@pytest.mark.usefixtures("told_at_once")  # so that more is sent than the buffers hold
def test_a_client_that_does_not_read(llm: LLM) -> None:
    """Its stream is more than the buffers of both sides hold. It is cut off, and its slot is free again."""
    with serving(llm, connections=ConnectionLimits(send_s=0.2), send_buffer=4096) as server:
        question = json.dumps({
            "messages": SUM, "stream": True, "max_tokens": 900, "ignore_eos": True, "logprobs": True,
            "top_logprobs": 20,
        }).encode()  # fmt: skip
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.connect(("127.0.0.1", server.settings.port))
            lazy.sendall(HEAD + f"Content-Length: {len(question)}\r\n\r\n".encode() + question)
            wait_until(lambda: server.engine.n_running > 0)
            wait_until(lambda: server.engine.n_running == 0, 30)
            assert b"[DONE]" not in what_is_left(lazy)
        assert server.get("/health").status_code == 200


@pytest.mark.usefixtures("told_at_once")
def test_a_client_that_goes_away_with_a_second_request_behind_the_first(server: Serving) -> None:
    question = json.dumps({"messages": SUM, "stream": True, "max_tokens": 900, "ignore_eos": True}).encode()
    whole = HEAD + f"Content-Length: {len(question)}\r\n\r\n".encode() + question
    before = server.engine.llm.model.session.stats.n_generated
    with connected(server) as connection:
        connection.sendall(whole + whole)
        wait_until(lambda: server.engine.n_running > 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed without waiting
    wait_until(lambda: server.engine.n_running == 0)
    assert server.engine.llm.model.session.stats.n_generated - before < 800


@pytest.mark.parametrize(
    "body", [b"zz\r\n{}\r\n0\r\n\r\n", b"-5\r\n{}", b"5\r\n{}\r\n\x00", b"ffffffffffffffffffff\r\n{}"]
)
def test_chunks_that_are_none(server: Serving, body: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        connection.shutdown(socket.SHUT_WR)
        said = end_of(connection)
        assert not said or said.startswith(b"HTTP/1.1 400"), said
        assert not said or json.loads(said.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert server.get("/health").status_code == 200
