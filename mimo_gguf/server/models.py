"""The models of a server: loaded at the first request, and unloaded, least recently used first, for another's sake.

Each loaded model has an engine with a thread of its own. One thread for all would be simpler, but a pass cannot be
interrupted: a token of a small model would wait while a large one reads a prompt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.log import LOGGER
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.asking import who_asks
from mimo_gguf.server.engine import Engine, Limits
from mimo_gguf.server.failures import Failure, Refused, refusal


class Source(Protocol):
    """Where a model comes from. The functions block, and run in a thread."""

    @property
    def path(self) -> Path:
        """The file."""

    def fits_beside(self, held: Sequence[FitPlan]) -> bool:
        """Whether it can be loaded beside models with these plans, and nearly as well as without them."""

    def load(self, held: Sequence[FitPlan], on_plan: Callable[[FitPlan], None] | None = None) -> LLM:
        """Loads it. Raises MimoGgufError if that cannot be."""


class Served:
    """One model, loaded or not.

    Attributes:
        names: what clients call it; lists show the first one first.
        engine: what answers; None while it is not loaded.
        past: counts of its earlier times in memory.
    """

    def __init__(self, names: Sequence[str], source: Source) -> None:
        self.names = tuple(names)
        self.source = source
        self.engine: Engine | None = None
        self.past: SessionStats | None = None
        self.used_s = 0.0  # when a request asked for it last
        self.n_users = 0  # requests that are being answered
        self.n_waiting = 0  # requests that wait until it is loaded
        self.is_leaving = False
        self.loading: asyncio.Task[None] | None = None
        self.free = asyncio.Event()  # set while nobody uses it
        self.free.set()

    @property
    def is_loaded(self) -> bool:
        """Whether a request is answered at once."""
        return self.engine is not None and not self.is_leaving

    @property
    def created_s(self) -> int:
        """When the file was changed last, in seconds since 1970; 0 if it is not there."""
        try:
            return int(self.source.path.stat().st_mtime)
        except OSError:
            return 0

    @property
    def plan(self) -> FitPlan | None:
        """The plan by which it was loaded; None if it is not loaded, or without a plan."""
        return None if self.engine is None else self.engine.llm.model.plan

    @property
    def stats(self) -> SessionStats | None:
        """The counts of all its times in memory; None if it was never loaded."""
        if self.engine is None:
            return self.past
        now = self.engine.llm.model.session.stats
        return now if self.past is None else self.past + now

    def take(self) -> None:
        """Notes one more user."""
        self.n_users += 1
        self.used_s = time.monotonic()
        self.free.clear()

    def release(self) -> None:
        """Notes one user less."""
        self.n_users -= 1
        if not self.n_users:
            self.free.set()


@dataclass(frozen=True, slots=True)
class Use:
    """A model in use by one request: it stays loaded until the request has ended.

    Attributes:
        name: the name by which it was called.
    """

    name: str
    names: tuple[str, ...]
    engine: Engine

    @property
    def llm(self) -> LLM:
        """The model."""
        return self.engine.llm


class Models:
    """All models of a server. Its methods belong to the event loop's thread.

    Attributes:
        on_first_token: called with the seconds from each call to its first token.
        on_wait: called with the engine on which a client's request has to wait for a slot.
    """

    def __init__(self, served: Sequence[Served], limits: Limits | None = None) -> None:
        """Takes models of which no two have a name in common; the first answers who gives no name."""
        self.all = tuple(served)
        self.limits = limits or Limits()
        self.on_first_token: Callable[[float], None] = lambda seconds: None
        self.on_wait: Callable[[Engine], None] = lambda engine: None
        self._by_name = {name: each for each in self.all for name in each.names}
        self._lock = asyncio.Lock()  # one is loaded at a time
        self._is_closed = False

    @property
    def names(self) -> tuple[str, ...]:
        """All names, model by model."""
        return tuple(self._by_name)

    def find(self, wanted: str | None) -> Served:
        """The model of a name, the first without one. Raises Refused for a name that is not here."""
        if not wanted:
            return self.all[0]
        found = self._by_name.get(wanted)
        if found is None:
            names = ", ".join(self.names)
            message = f"no model {wanted[:100]!r} here; there is {names}"
            raise refusal(404, message[:1000], code="model_not_found", param="model")
        return found

    async def use(self, wanted: str | None) -> Use:
        """The model of a name, loaded, until the request that asks has ended.

        Raises:
            Refused: there is no such model, it cannot be loaded, or too many requests wait for it.
        """
        served = self.find(wanted)
        while not served.is_loaded:
            await self._wait_for(served)
        assert served.engine is not None
        served.take()
        who_asks().ends.callback(served.release)
        return Use(wanted or served.names[0], served.names, served.engine)

    def put(self, served: Served, llm: LLM, kind: type[Engine] = Engine) -> None:
        """Notes that a model was loaded. An engine of this kind answers with it from now on."""
        served.engine = engine = kind(llm, self.limits)
        engine.on_first_token = lambda seconds: self.on_first_token(seconds)
        engine.on_wait = lambda: self.on_wait(engine)
        served.used_s = time.monotonic()

    def close(self) -> None:
        """Ends all answers with "abort", and frees all models."""
        self._is_closed = True
        for served in self.all:
            if served.engine is not None:
                served.engine.close()

    async def _wait_for(self, served: Served) -> None:
        """Waits until a model is loaded, together with all who want it."""
        if served.n_waiting >= self.limits.n_waiting + 1:
            raise Refused(
                Failure(429, "too many wait for this model", "rate_limit_error", "queue_full", retry_after_s=10)
            )
        if served.loading is None:
            served.loading = asyncio.create_task(self._load(served))
            served.loading.add_done_callback(_note_end)
        served.n_waiting += 1
        try:
            async with asyncio.timeout(self.limits.time_s):
                await asyncio.shield(served.loading)
        except TimeoutError:
            raise Refused(Failure(503, "not loaded in time", "server_error", "timeout", retry_after_s=5)) from None
        finally:
            served.n_waiting -= 1

    async def _load(self, served: Served) -> None:
        try:
            async with self._lock:
                if served.is_loaded:
                    return
                await self._make_room(served)
                llm = await asyncio.to_thread(served.source.load, self._held(served))
                if self._is_closed:
                    llm.close()
                else:
                    self.put(served, llm)
        except MimoGgufError as error:
            LOGGER.error("%s cannot be loaded: %s (%s)", served.names[0], error.message, error.hint or "no hint")
            raise Refused(_not_loaded(served, error)) from None
        finally:
            served.loading = None

    async def _make_room(self, wanted: Served) -> None:
        """Unloads others, least recently used first, until there is room enough."""
        while others := [each for each in self.all if each.engine is not None and each is not wanted]:
            if await asyncio.to_thread(wanted.source.fits_beside, self._held(wanted)):
                return
            await self._unload(min(others, key=lambda each: each.used_s))

    async def _unload(self, served: Served) -> None:
        """Unloads a model as soon as its running answers have ended. Who asks for it from now on waits."""
        served.is_leaving = True
        try:
            await served.free.wait()
            LOGGER.info("unloading %s", served.names[0])
            served.past = served.stats
            engine, served.engine = served.engine, None
            assert engine is not None
            await asyncio.to_thread(engine.close)
        finally:
            served.is_leaving = False

    def _held(self, wanted: Served) -> list[FitPlan]:
        """The plans of the other models that are loaded."""
        return [each.plan for each in self.all if each is not wanted and each.plan is not None]


def _note_end(task: asyncio.Task[None]) -> None:
    """Reads how a task ended, so that asyncio does not complain if all who waited have gone."""
    if not task.cancelled():
        task.exception()


def _not_loaded(served: Served, error: MimoGgufError) -> Failure:
    """The failure of a request for a model that cannot be loaded, without the paths of this machine."""
    reason = error.message.replace(f"{served.source.path.parent}/", "")
    return Failure(503, f"{served.names[0]} cannot be loaded: {reason}"[:500], "server_error", "model_not_loaded")
