"""`mimo-gguf worker`: it serves, says what it lends, refuses a taken port, and ends at Ctrl-C."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.command_line import PROGRAM, assert_clear_error, run, run_here


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_it_listens(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the worker does not listen")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    command = [*PROGRAM, "worker", "--cpu", "--port", str(port), "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_until_it_listens(port)
        assert_clear_error(run(tmp_path, "worker", "--port", str(port)), str(port), code=2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert "lending CPU" in said and f"127.0.0.1:{port}" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--port", value) for value in ("99999", "0", "-1", "nan", "1e308", "")),
        *(("--threads", value) for value in ("0", "-1", "513", "99999999999999999999", "inf")),
        *(("--host", value) for value in ("", "::1", "[::1]")),
    ],
)
def test_values_that_are_none(tmp_path: Path, option: str, value: str) -> None:
    done = run_here(tmp_path, "worker", "--cpu", f"{option}={value}")
    assert_clear_error(done, code=2)
    assert "listening" not in done.stderr and "lending" not in done.stderr


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    done = run(tmp_path, "worker", "--host", "192.0.2.1", "--port", str(free_port()))
    assert_clear_error(done, "192.0.2.1", code=2)
    assert "listening" not in done.stderr


def test_who_can_reach_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimo_gguf.hardware.worker.check_worker", lambda *_: None)
    monkeypatch.setattr("mimo_gguf.hardware.worker.serve", lambda *_, **__: None)
    before = signal.getsignal(signal.SIGINT)
    try:
        warned = run_here(tmp_path, "worker", "--cpu", "--host", "192.0.2.1")
        silent = run_here(tmp_path, "worker", "--cpu")
    finally:
        signal.signal(signal.SIGINT, before)
    assert "there is no password" in warned.stderr and "no password" not in silent.stderr
