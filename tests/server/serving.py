"""A real server on loopback, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.engine import Engine
from mimo_gguf.server.run import Server, config_of, listen
from mimo_gguf.server.settings import Settings

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
WHO = [{"role": "user", "content": "Who are you?"}]


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server."""

    engine: Engine
    settings: Settings
    client: Any

    @property
    def url(self) -> str:
        return self.settings.url

    def post(self, path: str, body: Any, **how: Any) -> Any:
        return self.client.post(self.url + path, json=body, **how)

    def get(self, path: str, **how: Any) -> Any:
        return self.client.get(self.url + path, **how)


@contextlib.contextmanager
def serving(llm: LLM, engine: type[Engine] = Engine, **settings: Any) -> Iterator[Serving]:
    """Serves a model until the end of the block; the model stays open."""
    given = Settings(**{"port": 0, "names": ("mimo-tiny", "other-name"), **settings})
    running = engine(llm, given.limits)
    with listen(given) as listener:
        given = replace(given, port=listener.getsockname()[1])
        ready = threading.Event()
        server = Server(config_of(running, given), ready.set)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        try:
            assert ready.wait(20)
            with httpx.Client(timeout=60, verify=False) as client:  # certificates take long to read
                yield Serving(running, given, client)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
