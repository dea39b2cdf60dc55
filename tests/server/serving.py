"""A real server on loopback, in a thread of the test's process."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.engine import Engine
from mimo_gguf.server.models import Models, Served
from mimo_gguf.server.run import Server, config_of, listen
from mimo_gguf.server.settings import Settings

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
WHO = [{"role": "user", "content": "Who are you?"}]


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server."""

    models: Models
    settings: Settings
    client: Any
    stop: Callable[[], None]

    @property
    def engine(self) -> Engine:
        """The first model's."""
        engine = self.models.all[0].engine
        assert engine is not None
        return engine

    @property
    def url(self) -> str:
        return self.settings.url

    def post(self, path: str, body: Any, **how: Any) -> Any:
        return self.client.post(self.url + path, json=body, **how)

    def get(self, path: str, **how: Any) -> Any:
        return self.client.get(self.url + path, **how)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is there already."""

    llm: LLM

    @property
    def path(self) -> Path:
        return self.llm.model.file.path

    def fits_beside(self, held: Sequence[FitPlan]) -> bool:
        return True

    def load(self, held: Sequence[FitPlan], on_plan: Callable[[FitPlan], None] | None = None) -> LLM:
        return self.llm


@contextlib.contextmanager
def serving(
    llm: LLM, engine: type[Engine] = Engine, *, send_buffer: int | None = None, **settings: Any
) -> Iterator[Serving]:
    """Serves a model until the end of the block; the model stays open. `send_buffer` bytes are each socket's buffer."""
    given = Settings(**{"port": 0, "names": ("mimo-tiny", "other-name"), **settings})
    models = Models([Served(given.names, Loaded(llm))], given.limits)
    models.put(models.all[0], llm, engine)
    with serving_models(models, given, send_buffer) as running:
        yield running


@contextlib.contextmanager
def serving_models(models: Models, given: Settings, send_buffer: int | None = None) -> Iterator[Serving]:
    """Serves models until the end of the block. They stay as they are then."""
    with listen(given) as listener:
        given = replace(given, port=listener.getsockname()[1])
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        ready = threading.Event()
        server = Server(config_of(models, given), ready.set)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))

        def stop() -> None:
            server.should_exit = True

        thread.start()
        try:
            assert ready.wait(20)
            with httpx.Client(timeout=60, verify=False) as client:  # certificates take long to read
                yield Serving(models, given, client, stop)
        finally:
            stop()
            thread.join(20)
            assert not thread.is_alive()
