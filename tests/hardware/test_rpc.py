"""Whatever listens at a worker's address: a worker, or one clear error within the time."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.hardware.rpc import PROTOCOL, add_workers, check_worker
from tests.cli.command_line import assert_clear_error, run
from tests.tiny_models import make_model
from tests.workers import running_worker

Answer = Callable[[socket.socket], None]


@contextmanager
def listening(answer: Answer) -> Iterator[str]:
    """Endpoint of a listener that does `answer` with every connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                    with connection:
                        answer(connection)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def silent(connection: socket.socket) -> None:
    time.sleep(3)


def closing(connection: socket.socket) -> None:
    pass


def dripping(connection: socket.socket) -> None:
    """Always in time for the next byte, never done."""
    for byte in struct.pack("<Q", 28) + bytes(28):
        connection.sendall(bytes([byte]))
        time.sleep(0.2)


def saying(data: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.recv(64)
        connection.sendall(data)
        connection.recv(64)

    return answer


def worker_of(*version: int) -> Answer:
    return saying(struct.pack("<Q4B24x", 28, *version, 0))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (silent, "no answer"),
        (dripping, "no answer"),
        (closing, "not a worker"),
        (saying(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), "not a worker"),
        (saying(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3, a banner of some length\r\n"), "not a worker"),
        (saying(bytes(36)), "not a worker"),
        (saying(struct.pack("<Q3B", 3, 7, 0, 0)), "not a worker"),  # shorter, as older versions answer
        (worker_of(6, 0, 0), "6.0.0"),
        (worker_of(8, 0, 0), "8.0.0"),
        (worker_of(PROTOCOL[0], PROTOCOL[1] + 1, 0), "this llama.cpp has 7.0.0"),
    ],
)
def test_what_is_no_worker_of_this_version(answer: Answer, said: str) -> None:
    with listening(answer) as endpoint:
        started = time.monotonic()
        with pytest.raises(BackendError, match=re.escape(said)) as caught:
            check_worker(endpoint, timeout_s=1.0)
        assert time.monotonic() - started < 2.5 and endpoint in caught.value.message and caught.value.hint


def test_a_worker_of_this_version(tmp_path: Path) -> None:
    with running_worker() as endpoint:
        check_worker(endpoint)
        check_worker(endpoint)  # the first greeting leaves it free
        with listening(closing) as other:  # all are looked at before any is used
            command = ("fit", make_model(tmp_path), "--rpc", endpoint, "--rpc", other)
            assert_clear_error(run(tmp_path, *command), other, "not a worker", code=1)
        asked = run(tmp_path, "fit", tmp_path / "model.gguf", "--rpc", endpoint, "--asked", "--ctx", "512")
        assert asked.returncode == 0 and "RPC0" in asked.stdout, asked.stderr


def test_a_worker_that_is_busy_with_another_program() -> None:
    with running_worker() as endpoint:
        host, _, port = endpoint.rpartition(":")
        with socket.create_connection((host, int(port))), pytest.raises(BackendError, match="no answer") as caught:
            check_worker(endpoint, timeout_s=0.5)
        assert "busy" in str(caught.value.hint)


@pytest.mark.parametrize(
    "endpoint",
    ["", "here", "host:", ":1", "host:0", "host:99999", "host:port", "host:٣", "::1:50052", "[::1]:50052", "h:-1"],
)
def test_an_endpoint_is_host_and_port(endpoint: str) -> None:
    with pytest.raises(UsageError):
        check_worker(endpoint)
    with pytest.raises(UsageError):
        add_workers([endpoint])


def test_nobody_at_the_endpoint() -> None:
    for endpoint in ("127.0.0.1:1", "no-such-host.invalid:50052", "a" * 300 + ":50052", "\0:50052"):
        with pytest.raises(BackendError) as caught:
            add_workers([endpoint])
        assert "mimo-gguf worker" in str(caught.value.hint)
