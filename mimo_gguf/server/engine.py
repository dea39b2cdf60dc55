"""The model behind the server: a bounded queue before it, a time limit for each call, and events as they come.

The scheduler gives slots and steps; one thread of `Pump` does that for all calls. Here is only what a server adds.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mimo_gguf.chat.answer import Answer
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.log import LOGGER
from mimo_gguf.engine.parking import Parking
from mimo_gguf.hardware.memory_watch import MemoryWatch
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.pump import Pump
from mimo_gguf.runtime.scheduler import Event, Request
from mimo_gguf.server.asking import BACKGROUND, Asking, who_asks
from mimo_gguf.server.failures import Failure, Refused

_LONGEST_RETRY_S: Final = 60
_EVERY_S: Final = 0.016  # between two chunks of one answer, as long as a picture on a screen; passes may be shorter
_LINGER_S: Final = 5.0  # that the thread which steps stays for the next call
_TURN_S: Final = 0.0005  # for which another thread may keep Python's lock when a pass has ended; 5 ms without it
_NEWEST: Final = 0.2  # weight of the newest call in the mean time of a call


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server takes on.

    Attributes:
        n_waiting: answers that may wait for a slot.
        time_s: seconds after which a call is cut off, counted from its arrival; None sets no limit.
    """

    n_waiting: int = 64
    time_s: float | None = None


class Engine:
    """A model that answers calls. All methods belong to the event loop's thread.

    Attributes:
        on_first_token: called with the seconds from each call to its first token.
        on_wait: called when a client's request has to wait for a slot.
    """

    def __init__(self, llm: LLM, limits: Limits | None = None) -> None:
        """Takes over a model. From then on the threads of this process take turns more often."""
        sys.setswitchinterval(min(sys.getswitchinterval(), _TURN_S))
        self.llm = llm
        self.limits = limits or Limits()
        plan = llm.model.plan
        self._watch = MemoryWatch([fit.device.name for fit in plan.devices]) if plan else None
        self._pump = Pump(llm.model.driver, _LINGER_S, self._warn_of_shortage)
        self._mean_s = 1.0
        self.on_first_token: Callable[[float], None] = lambda seconds: None
        self.on_wait: Callable[[], None] = lambda: None

    @property
    def n_running(self) -> int:
        """The number of answers that have a slot."""
        return self.llm.model.driver.scheduler.n_running

    @property
    def n_waiting(self) -> int:
        """The number of answers that wait for a slot."""
        return self.llm.model.driver.scheduler.n_waiting

    @property
    def n_lacking(self) -> int:
        """The number of slots that clients' answers lack; negative if more are free than they need."""
        n_waiting = self.llm.model.driver.scheduler.n_waiting_from(BACKGROUND + 1)
        return n_waiting - (self.n_parallel - self.n_running)

    @property
    def n_parallel(self) -> int:
        """The number of slots."""
        return self.llm.model.session.options.n_parallel

    @property
    def n_cached(self) -> int:
        """The number of tokens in the KV cache; those that slots share count twice."""
        return sum(len(slot.tokens) for slot in self.llm.model.session.slots)

    @property
    def parking(self) -> Parking:
        """The conversations that are parked in the host's memory."""
        return self.llm.model.driver.scheduler.parking

    def submit(self, requests: Sequence[Request], *, is_whole: bool = False) -> Call:
        """Queues the requests of one call, as those of the client that asks.

        Args:
            is_whole: whether only whole answers are wanted, which costs least.

        Raises:
            Refused: the queue is full.
            UsageError: more answers than the queue ever holds, a prompt that is empty or too long, or a closed model.
        """
        asking = who_asks()
        self._check_room(len(requests), asking)
        is_client = asking.priority > BACKGROUND
        time_s = self.limits.time_s if is_client else None
        every_s = math.inf if is_whole else _EVERY_S
        call = Call(self, [asking.stamped(request, every_s) for request in requests], self._pump, time_s)
        if is_client and self.n_lacking > 0:
            self.on_wait()
        return call

    def close(self) -> None:
        """Ends all answers with "abort" and frees the model."""
        self.llm.close()
        self._pump.join()

    def _warn_of_shortage(self) -> None:
        """Warns in the log when other programs take the memory that answers need. In the thread that steps."""
        for warning in self._watch.poll() if self._watch else ():
            LOGGER.warning("%s", warning)

    def note_seconds(self, seconds: float) -> None:
        """Notes how long a call took, to tell others when to come again."""
        self._mean_s += _NEWEST * (seconds - self._mean_s)

    def _check_room(self, n: int, asking: Asking) -> None:
        """Refuses what the queue has no room for. A client without a request of its own may go a little beyond it."""
        scheduler, most = self.llm.model.driver.scheduler, self.n_parallel + self.limits.n_waiting
        if n > most:
            raise UsageError(f"{n} answers in one request", hint=f"this server takes {most} at a time")
        n_open = scheduler.n_open(asking.priority)
        is_new = self.limits.n_waiting > 0 and not scheduler.n_open(asking.priority, asking.client)
        if n_open + n <= most + (self.n_parallel if is_new else 0):
            return
        n_waiting = max(n_open - self.n_parallel, 0)
        seconds = math.ceil(self._mean_s * (n_waiting + 1) / self.n_parallel)
        raise Refused(
            Failure(
                429, f"{n_waiting} answers are waiting already", "rate_limit_error", "queue_full",
                retry_after_s=max(1, min(seconds, _LONGEST_RETRY_S)),
            )
        )  # fmt: skip


class Call:
    """The answers to one call, from their place in the queue to their last event."""

    def __init__(self, engine: Engine, requests: Sequence[Request], pump: Pump, time_s: float | None) -> None:
        self.engine, self._began = engine, time.monotonic()
        self._driver = engine.llm.model.driver
        pump.gather()
        self._ticket = self._driver.submit(requests)
        self._box = pump.listen(self._ticket)
        self._n_open = len(requests)
        self.ids = self._ticket.ids
        self.ran_out = False  # whether the time limit ended it
        loop = asyncio.get_running_loop()
        self._limit = None if time_s is None else loop.call_later(time_s, self._run_out)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields all events until the last request has ended. Leaving the iteration early cancels the rest.

        Raises:
            Refused: the time limit was reached before anything was generated.
            MimoGgufError: a request failed.
        """
        has_begun = False
        try:
            while self._n_open:
                for event in await self._box.take():
                    if event.error is not None:
                        raise event.error
                    if event.n_tokens and not has_begun:
                        has_begun = True
                        self.engine.on_first_token(time.monotonic() - self._began)
                    self._n_open -= event.is_last
                    if self.ran_out and event.is_last and not has_begun:
                        raise Refused(Failure(503, "not answered in time", "server_error", "timeout", retry_after_s=5))
                    yield event
            self.engine.note_seconds(time.monotonic() - self._began)
        finally:
            self.cancel()

    @property
    def has_slot(self) -> bool:
        """Whether one of its answers has a slot."""
        return any(self._driver.scheduler.has_slot(request_id) for request_id in self.ids)

    def so_far(self, request_id: int) -> Answer | None:
        """The answer to a request so far; None if its last event was collected."""
        return self._driver.answer(request_id)

    def cancel(self) -> None:
        """Ends what has not ended within one step."""
        if self._limit is not None:
            self._limit.cancel()
        self._ticket.cancel()

    def cancel_one(self, request_id: int) -> None:
        """Ends one of the answers; its last event still comes."""
        self._driver.cancel([request_id])

    def _run_out(self) -> None:
        self.ran_out = True
        self._ticket.cancel()
