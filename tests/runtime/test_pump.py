"""`Pump`: events reach their tasks, each once and in order, as long as there are tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

import pytest

from mimo_gguf.chat.answer import Answer
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.runtime.driver import Driver, GoesOn, Ticket
from mimo_gguf.runtime.pump import Box, Pump
from mimo_gguf.runtime.scheduler import Event

LAST = Answer("", "", (), "stop", None, 1, None, SessionStats())


class Passes:
    """Plays a driver whose passes last a given time, each with one event for every request."""

    def __init__(self, n_passes: int, seconds: float) -> None:
        self.n_passes, self._seconds = n_passes, seconds
        self.n_done = 0
        self.cancelled = threading.Event()

    def wait(self, ids: Sequence[int], *, goes_on: GoesOn) -> list[Event]:
        time.sleep(self._seconds)
        self.n_done += 1
        answer = LAST if self.n_done == self.n_passes or self.cancelled.is_set() else None
        return [Event(number, n_tokens=self.n_done, answer=answer) for number in ids]

    def cancel(self, ids: Sequence[int]) -> None:
        self.cancelled.set()


class OneTicket:
    def __init__(self, passes: Passes) -> None:
        self.ids, self._passes = (1,), passes

    def cancel(self) -> None:
        self._passes.cancel(self.ids)


def deliveries(passes: Passes) -> tuple[list[list[int]], list[int]]:
    """The numbers of tokens that each delivery brought, and how many passes were done by then."""
    brought: list[list[int]] = []
    done: list[int] = []

    async def read(box: Box) -> None:
        while not brought or brought[-1][-1] < passes.n_passes:
            brought.append([event.n_tokens for event in await box.take()])
            done.append(passes.n_done)

    async def main() -> None:
        pump = Pump(cast("Driver", passes))
        await asyncio.wait_for(read(pump.listen(cast("Ticket", OneTicket(passes)))), 30)
        pump.join()

    asyncio.run(main())
    return brought, done


def test_every_event_comes_once_and_in_order() -> None:
    brought, _ = deliveries(Passes(300, 0.0005))
    assert [number for each in brought for number in each] == list(range(1, 301))


def test_slow_passes_do_not_wait() -> None:
    brought, done = deliveries(Passes(4, 0.3))
    assert brought == [[1], [2], [3], [4]] and done == [1, 2, 3, 4]


def test_a_closed_loop_ends_its_requests() -> None:
    passes = Passes(10**6, 0.001)
    pump = Pump(cast("Driver", passes))

    async def leave() -> Any:
        box = pump.listen(cast("Ticket", OneTicket(passes)))
        return await box.take()

    asyncio.run(leave())
    assert passes.cancelled.wait(20)
    pump.join()


def test_the_thread_stays_for_the_next_request_and_ends_when_it_is_joined() -> None:
    passes = Passes(1, 0.0)
    pump = Pump(cast("Driver", passes), linger_s=60.0)

    async def ask() -> None:
        passes.n_done = 0
        await pump.listen(cast("Ticket", OneTicket(passes))).take()

    before = set(threading.enumerate())  # some may end meanwhile
    asyncio.run(ask())
    (stays,) = set(threading.enumerate()) - before
    asyncio.run(ask())
    assert set(threading.enumerate()) - before == {stays}
    pump.join()
    assert not stays.is_alive()


def test_requests_of_one_moment_are_stepped_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one alone would take a pass, and all others would wait for it."""
    monkeypatch.setattr("mimo_gguf.runtime.pump._TURNS_S", 10.0)  # other programs may keep the loop from its turns
    seen: list[int] = []

    class Noting(Passes):
        def wait(self, ids: Sequence[int], *, goes_on: GoesOn) -> list[Event]:
            seen.append(len(ids))
            return super().wait(ids, goes_on=goes_on)

    class Ticketed(OneTicket):
        def __init__(self, passes: Passes, number: int) -> None:
            super().__init__(passes)
            self.ids = (number,)

    async def ask(pump: Pump, passes: Passes, number: int) -> None:
        for _ in range(number % 3):  # some need one more turn of the loop, or two
            await asyncio.sleep(0)
        pump.gather()
        time.sleep(0.0003)  # as reading a body does
        box = pump.listen(cast("Ticket", Ticketed(passes, number)))
        while not (await box.take())[-1].is_last:
            pass

    async def main() -> None:
        passes = Noting(3, 0.001)
        pump = Pump(cast("Driver", passes), 1.0)
        await asyncio.wait_for(asyncio.gather(*(ask(pump, passes, number) for number in range(8))), 30)
        pump.join()

    asyncio.run(main())
    assert seen == [8, 8, 8]


def test_a_loop_that_does_not_turn_is_not_waited_for() -> None:
    passes = Passes(2, 0.001)

    async def main() -> float:
        pump = Pump(cast("Driver", passes))
        pump.gather()
        box = pump.listen(cast("Ticket", OneTicket(passes)))
        time.sleep(0.2)  # the loop is busy with something else
        n_done = passes.n_done
        while not (await box.take())[-1].is_last:
            pass
        pump.join()
        return n_done

    assert asyncio.run(main()) == 2
