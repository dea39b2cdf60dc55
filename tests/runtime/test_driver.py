"""`Driver`: a thread that waits for events steps again without giving the lead away, as long as it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pytest

from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.runtime.driver import Driver
from mimo_gguf.runtime.scheduler import Event, Request, Scheduler


class Steps:
    """Plays a scheduler of one request, with nothing to tell before step `n_silent` has passed."""

    def __init__(self, n_silent: int) -> None:
        self.session = self.slot = self
        self.idle = False
        self.n_steps = 0
        self._n_silent = n_silent

    def check_prompt(self, prompt: list[int]) -> None: ...
    def interrupt(self) -> None: ...
    def cancel(self, request_id: int) -> None: ...

    def add(self, request: Request) -> int:
        return 1

    def step(self) -> list[Event]:
        self.n_steps += 1
        return [] if self.n_steps <= self._n_silent else [Event(1, n_tokens=self.n_steps)]


@pytest.fixture
def driven() -> Iterator[tuple[Steps, Driver]]:
    steps = Steps(5)
    driver = Driver(cast("Scheduler", steps))
    ticket = driver.submit([Request((1,), SamplingOptions())])
    yield steps, driver
    assert not ticket.is_done  # it was kept: without it the request would be forgotten


def test_steps_without_events_are_one_turn(driven: tuple[Steps, Driver]) -> None:
    steps, driver = driven
    (event,) = driver.wait([1], goes_on=lambda: True)
    assert event.n_tokens == steps.n_steps == 6


def test_a_turn_ends_when_there_may_be_new_requests(driven: tuple[Steps, Driver]) -> None:
    steps, driver = driven
    assert driver.wait([1], goes_on=lambda: steps.n_steps < 3) == []
    assert steps.n_steps == 3
    steps.idle = True
    assert driver.wait([1], goes_on=lambda: True) == []
    assert steps.n_steps == 4


def test_another_thread_gets_its_events_from_a_long_turn(driven: tuple[Steps, Driver]) -> None:
    steps, driver = driven
    found: list[list[Event]] = []
    other = threading.Thread(target=lambda: found.append(driver.wait([1])))

    def goes_on() -> bool:
        if steps.n_steps == 2:
            other.start()
        return True

    assert driver.wait([], goes_on=goes_on) == []  # the events of the sixth step are not this thread's
    other.join(30)
    assert [event.n_tokens for event in found[0]] == [6]
