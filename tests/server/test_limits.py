"""What a server takes on: a bounded queue, a time limit, clients that go away, and its own end."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.engine import Limits
from tests.server.serving import SUM, Serving, serving

ENDLESS: dict[str, Any] = {"messages": SUM, "temperature": 0, "ignore_eos": True, "max_tokens": 900}
SHORT: dict[str, Any] = {"messages": SUM, "temperature": 0, "max_tokens": 3}
PATH = "/v1/chat/completions"


def wait_until(fact: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextlib.contextmanager
def streams(server: Serving, n: int, **body: Any) -> Iterator[list[Iterator[str]]]:
    """Streams that have begun. At the end their connections are closed."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(httpx.Client(timeout=60, verify=False, limits=httpx.Limits(max_connections=None)))
        found = []
        for _ in range(n):
            how = client.stream("POST", server.url + PATH, json={**ENDLESS, "stream": True, **body})
            found.append(stack.enter_context(how).iter_lines())
        yield found


def test_past_the_queue_a_client_is_told_when_to_come_again(llm: LLM) -> None:
    with serving(llm, limits=Limits(n_waiting=0)) as server:
        with streams(server, 4):
            busy = server.post(PATH, SHORT)
            assert busy.status_code == 429 and 1 <= int(busy.headers["retry-after"]) <= 60
            assert busy.json()["error"]["code"] == "queue_full"
        wait_until(lambda: server.engine.n_running == 0)
        assert server.post(PATH, SHORT).status_code == 200
        too_many = server.post(PATH, SHORT | {"n": 5})
        assert too_many.status_code == 400 and "4 at a time" in too_many.json()["error"]["message"]


def test_who_waits_gets_a_slot(llm: LLM) -> None:
    with serving(llm, limits=Limits(n_waiting=1), keep_alive_s=0.05) as server:
        said: list[Any] = []
        with streams(server, 4):
            waiting = threading.Thread(target=lambda: said.append(server.post(PATH, SHORT)))
            waiting.start()
            wait_until(lambda: server.engine.n_waiting == 1)
            assert server.post(PATH, SHORT).status_code == 429
        waiting.join(20)
        assert said[0].status_code == 200


def test_a_stream_that_waits_gets_comments(llm: LLM) -> None:
    with serving(llm, keep_alive_s=0.05) as server, streams(server, 4), streams(server, 1) as (waiting,):
        assert next(waiting) == ": keep-alive"


def test_a_client_that_goes_away_is_forgotten(server: Serving, llm: LLM) -> None:
    def n_generated() -> int:
        return llm.model.session.stats.n_generated

    with streams(server, 2) as running:
        for lines in running:
            next(lines)
        wait_until(lambda: server.engine.n_running == 2)
    wait_until(lambda: server.engine.n_running == 0)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + PATH, json=ENDLESS, timeout=0.3, verify=False)
    wait_until(lambda: server.engine.n_running == 0)
    before = n_generated()
    time.sleep(0.05)
    assert n_generated() == before


def test_time_is_limited(llm: LLM) -> None:
    with serving(llm, limits=Limits(time_s=0.5)) as server:
        began = time.monotonic()
        cut = server.post(PATH, ENDLESS).json()
        assert time.monotonic() - began < 5
        assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] < 900
        with streams(server, 1) as (lines,):
            chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_server_that_stops_answers_what_it_has_taken_on(llm: LLM) -> None:
    said: list[Any] = []
    with serving(llm) as server:
        body = ENDLESS | {"max_tokens": 60}
        how: dict[str, Any] = {"json": body, "timeout": 60, "verify": False}
        asking = threading.Thread(target=lambda: said.append(httpx.post(server.url + PATH, **how)))
        asking.start()
        wait_until(lambda: server.engine.n_running == 1)
    asking.join(20)
    assert said[0].json()["usage"]["completion_tokens"] == 60
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", verify=False)
