"""Answers for any number of threads: whoever waits for one steps the scheduler for all, one thread at a time.

There is no thread of its own. The thread that finds nobody stepping does it, and puts what comes for the others into
their boxes; it goes away with what it wanted, and the next one that waits takes over. So a step is never under way
while nobody wants anything, and nothing has to be stopped at the exit of the process.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from mimo_gguf.chat.answer import Answer
from mimo_gguf.core.errors import UsageError
from mimo_gguf.llama.lifetime import Process
from mimo_gguf.runtime.interrupts import DeferredSignals
from mimo_gguf.runtime.scheduler import Event, Request, Scheduler

_CHECK_S: Final = 1.0  # how often a thread that waits looks for itself, should a notice have been lost
Taker = Callable[[Sequence[Event]], None]


class Driver:
    """Owns a scheduler and the boxes in which its events wait for those that want them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._lock = threading.RLock()  # a finalizer or a signal handler may close the model while its thread holds it
        self._leader: _Lead | None = None  # who steps
        self._gates: list[threading.Lock] = []  # of threads that wait for it
        self._boxes: dict[int, deque[Event]] = {}
        self._closed = False
        self._process = Process.number

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Queues requests; the ticket by which their events come.

        Raises:
            UsageError: the model was closed, or a prompt is empty or too long; nothing is queued then.
        """
        Process.check_same(self._process)
        for request in requests:
            self.scheduler.session.slot.check_prompt(request.prompt)
        with DeferredSignals(_nothing), self._lock:
            if self._closed:
                raise _closed()
            ids = [self.scheduler.add(request) for request in requests]
            self._boxes.update((request_id, deque()) for request_id in ids)
            return Ticket(self, ids)

    def wait(self, ids: Sequence[int], *takers: Taker) -> list[Event]:
        """Events of these requests, at least one, stepping for all as long as there are none.

        Args:
            takers: called with the events before a signal handler can run, so that none is lost.

        Raises:
            UsageError: called from within a step, or the events were lost with what an exception broke off.
            KeyboardInterrupt: Ctrl-C, between two steps.
        """
        Process.check_same(self._process)
        while True:
            events, led = self._take_turn(ids, takers)
            if events:
                return events
            if self._boxes.keys().isdisjoint(ids):
                raise _broken_off()
            if not led:
                self._wait_for_a_step(ids)

    def cancel(self, ids: Sequence[int]) -> None:
        """Ends requests as soon as possible. From a signal handler or a finalizer, too."""
        if self._process != Process.number:
            return
        for request_id in ids:
            self.scheduler.cancel(request_id)

    def forget(self, ids: Sequence[int]) -> None:
        """Cancels requests whose events nobody wants any more. From a finalizer, too."""
        for request_id in ids:
            self._boxes.pop(request_id, None)
        self.cancel(ids)

    def answer(self, request_id: int) -> Answer | None:
        """What a request has said so far; None once its last event was taken."""
        answer = self.scheduler.answer(request_id)
        if answer is not None:
            return answer
        box = self._boxes.get(request_id)
        return box[-1].answer if box else None

    def close(self) -> None:
        """Ends everything: what runs or waits is answered with "abort", and nothing is taken any more.

        Raises:
            UsageError: called from within a step.
        """
        if self._process != Process.number:
            return
        with self._lock:
            if self._leader is not None and self._leader.is_here:
                raise _within_a_step()
            self._closed = True
        self.scheduler.cancel_all()
        self.scheduler.session.interrupt()
        while not self.scheduler.idle:
            _, led = self._take_turn((), ())
            if not led:
                self._wait_for_a_step(())

    def _take_turn(self, ids: Sequence[int], takers: Sequence[Taker]) -> tuple[list[Event], bool]:
        """What has come for these requests; if nothing has and nobody steps, a step, and what it brings; whether so."""
        lead = _Lead()
        try:
            with DeferredSignals(self.scheduler.session.interrupt):
                with self._lock:
                    events = self._collect(ids)
                    led = not events and self._take_lead(lead)
                if led:
                    self._step()
                    with self._lock:
                        events = self._collect(ids)
                for take in takers:
                    take(events)
        finally:
            if self._leader is lead:  # something was raised between two lines
                self._leader = None
        return events, led

    def _wait_for_a_step(self, ids: Sequence[int]) -> None:
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            if self._leader is None or self._has_mail(ids):
                return
            self._gates.append(gate)
        gate.acquire(timeout=_CHECK_S)

    def _take_lead(self, lead: _Lead) -> bool:
        if self._leader is not None and self._leader.is_here:
            raise _within_a_step()
        if self._leader is None:
            self._leader = lead
        return self._leader is lead

    def _step(self) -> None:
        try:
            self._deliver(self.scheduler.step())
        except BaseException:
            self._deliver_lost()
            raise
        finally:
            self._leader = None  # first: the rest may be interrupted
            self._open_gates()

    def _open_gates(self) -> None:
        with self._lock:
            gates, self._gates = self._gates, []
        for gate in gates:
            gate.release()

    def _deliver(self, events: Sequence[Event]) -> None:
        with self._lock:
            for event in events:
                if event.id in self._boxes:
                    self._boxes[event.id].append(event)

    def _deliver_lost(self) -> None:
        """Tells those whose requests have ended in a step that was broken off."""
        with self._lock:
            for request_id, box in list(self._boxes.items()):
                if self.scheduler.answer(request_id) is None and not (box and box[-1].is_last):
                    box.append(Event(request_id, error=_broken_off()))

    def _has_mail(self, ids: Sequence[int]) -> bool:
        return any(self._boxes.get(request_id) for request_id in ids)

    def _collect(self, ids: Sequence[int]) -> list[Event]:
        """Takes the events of these requests out of their boxes, which go with the last one."""
        events: list[Event] = []
        for request_id in ids:
            box = self._boxes.get(request_id)
            if not box:
                continue
            while box:
                events.append(box.popleft())
            if events[-1].is_last:
                self._boxes.pop(request_id, None)
        return events


class _Lead:
    """One call's claim to step."""

    __slots__ = ("_thread",)

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether it is this thread's, which then asks from within its own step."""
        return self._thread == threading.get_ident()


class Ticket:
    """Requests that somebody waits for. Dropped, it cancels what has not ended."""

    def __init__(self, driver: Driver, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self._open = dict.fromkeys(ids)
        self._driver = driver

    @property
    def is_done(self) -> bool:
        """Whether every request has ended."""
        return not self._open

    def wait(self, *takers: Taker) -> list[Event]:
        """The next events, at least one unless all have ended.

        Args:
            takers: called with them before a signal handler can run.

        Raises:
            KeyboardInterrupt: Ctrl-C. The requests go on until they are cancelled.
        """
        return self._driver.wait(list(self._open), self._note, *takers) if self._open else []

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.is_last:
                self._open.pop(event.id, None)

    def events(self) -> Iterator[Event]:
        """All events, to the end."""
        while self._open:
            yield from self.wait()

    def answer(self, request_id: int) -> Answer | None:
        """What a request has said so far; None if its last event has come."""
        return self._driver.answer(request_id)

    def cancel(self) -> None:
        """Ends what has not ended, as soon as possible; the last events still come."""
        self._driver.cancel(list(self._open))

    def __del__(self) -> None:
        if self._open:
            self._driver.forget(list(self._open))


def _nothing() -> None:
    """Done when a signal comes where nothing has to be hurried."""


def _broken_off() -> UsageError:
    return UsageError("the answer was broken off by an error in another thread", hint="ask again")


def _closed() -> UsageError:
    return UsageError("the model has been closed", hint="load it again")


def _within_a_step() -> UsageError:
    return UsageError("an answer is being generated below", hint="do not ask from a signal handler")
