"""`mimo-gguf serve` as a user runs it: the plan, the address, an answer, and how it ends."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.command_line import PROGRAM, assert_clear_error, hear_interrupts, run_here

ENDLESS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "stream": True,
}  # fmt: skip


@contextlib.contextmanager
def started(file: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, its address, and what it has said until it listened."""
    words = [*PROGRAM, "serve", str(file), "--port", "0", "--ctx", "2048", "-t", "1", *options]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts) as process:
        try:
            assert process.stderr is not None
            said: list[str] = []
            while not said or "listening on" not in said[-1]:
                line = process.stderr.readline()
                assert line, said
                said.append(line)
            found = re.search(r"http://\S+:\d+", said[-1])
            assert found
            yield process, found[0], said
        finally:
            process.kill()


@contextlib.contextmanager
def a_stream(url: str, n: int = 400) -> Iterator[Iterator[str]]:
    body = ENDLESS | {"max_tokens": n}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        yield lines


def test_it_serves_and_ends_when_all_is_answered(mimo_tiny: Path) -> None:
    with started(mimo_tiny, "--alias", "gpt-4o", "--parallel", "2") as (process, url, said):
        assert "2 contexts of 1024" in said[0] and mimo_tiny.stem in said[-1]
        models = httpx.get(f"{url}/v1/models").json()["data"]
        assert [(each["id"], each["max_model_len"]) for each in models] == [(mimo_tiny.stem, 1024), ("gpt-4o", 1024)]
        with a_stream(url, 80) as lines:
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert "Traceback" not in log and "Hello" not in log
    assert re.search(r"req_\w+ POST '/v1/chat/completions' 200 [\d.]+ s", log)


def test_a_second_interrupt_ends_it_at_once(mimo_tiny: Path) -> None:
    """The answer takes a second on a machine that draws 1900 tokens in one."""
    with started(mimo_tiny, "--parallel", "1") as (process, url, _), a_stream(url, 1900) as lines:
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        with contextlib.suppress(httpx.HTTPError):
            assert "data: [DONE]" not in list(lines)
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "no key"),
        (["--mem-fraction", "0.0001"], 3, "are free"),
        (["--mem-fraction", "2"], 2, "a share of 2"),
        (["--draft", "9"], 2, "9 drafts"),
        (["--cors-origin", "x"], 2, "origin"),
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], 2, "none.pem"),
    ],
)
def test_what_is_refused(mimo_tiny: Path, tmp_path: Path, options: list[str], code: int, words: str) -> None:
    assert_clear_error(run_here(tmp_path, "serve", mimo_tiny, "--port", "0", *options), words, code=code)


def test_an_address_that_is_taken(mimo_tiny: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_clear_error(run_here(tmp_path, "serve", mimo_tiny, "--port", port), port, code=2)
