"""While a server answers, free memory is watched: from the device list to the line in its log."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.hardware.devices import Device, host_device
from mimo_gguf.hardware.memory_watch import MemoryWatch
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server import engine
from tests.server.test_limits import wait_until
from tests.server.test_models import PATH, body, two


def test_a_shortage_is_told_once_while_it_answers(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = [replace(host_device(), free_bytes=8 * GIB)]
    n_looks = 0

    def read() -> list[Device]:
        nonlocal n_looks
        n_looks += 1
        return machine

    monkeypatch.setattr(engine, "MemoryWatch", lambda names: MemoryWatch(names, 0.01, read, others=lambda _: "a game"))
    with caplog.at_level(logging.WARNING), two(llm) as (server, *_), ThreadPoolExecutor(1) as pool:
        server.get("/health")
        assert n_looks == 0, "nobody is answered"
        answer = pool.submit(server.post, PATH, body("a", 400))
        wait_until(lambda: n_looks > 0)
        assert not caplog.messages
        machine[0] = replace(machine[0], free_bytes=50 * MIB)
        wait_until(lambda: bool(caplog.messages))
        assert answer.result().status_code == 200
    (told,) = caplog.messages
    assert told.startswith("only 50.0 MiB are left on CPU: a game need it too")
