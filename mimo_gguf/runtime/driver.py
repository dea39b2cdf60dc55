"""Serves any number of threads: one of those that wait for an answer steps the scheduler for all of them.

The driver has no thread of its own. A waiting thread becomes the leader if there is none. It steps, puts the events of
other threads into their boxes, and leaves when it has its own events; then another waiting thread leads. So nothing
runs unless a thread waits, and nothing has to be stopped at the exit of the process.
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

_CHECK_S: Final = 1.0  # seconds after which a waiting thread checks by itself, in case a notice was lost
Receiver = Callable[[Sequence[Event]], None]
GoesOn = Callable[[], bool]


class Driver:
    """Owns a scheduler, and a box for each request in which its events wait."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._lock = threading.RLock()  # a finalizer or a signal handler may close the model while its thread holds it
        self._leader: _Turn | None = None  # the turn that may step
        self._gates: list[threading.Lock] = []  # those of the threads that wait for its end
        self._boxes: dict[int, deque[Event]] = {}
        self._closed = False
        self._process = Process.number

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Queues requests. Returns a ticket, which gives their events.

        Raises:
            UsageError: the model was closed, or a prompt is empty or too long; then nothing is queued.
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

    def wait(self, ids: Sequence[int], *receivers: Receiver, goes_on: GoesOn | None = None) -> list[Event]:
        """Waits for events of these requests, or steps for all threads, until there is at least one.

        Args:
            receivers: called with the events before a signal handler can run, so that none is lost.
            goes_on: asked after each step that brought no event to anybody. The call returns without events if it
                says no, because further requests may have come. For threads that handle no signals.

        Raises:
            UsageError: a signal handler called it during a step, or an exception elsewhere broke the requests off.
            KeyboardInterrupt: Ctrl-C, raised between two steps.
        """
        Process.check_same(self._process)
        while True:
            events, led = self._run_turn(ids, receivers, goes_on)
            if events or (led and goes_on is not None):
                return events
            if self._boxes.keys().isdisjoint(ids):
                raise _broken_off()
            if not led:
                self._wait_for_a_step(ids)

    def cancel(self, ids: Sequence[int]) -> None:
        """Ends requests as soon as possible. May be called from a signal handler or a finalizer."""
        if self._process != Process.number:
            return
        for request_id in ids:
            self.scheduler.cancel(request_id)

    def forget(self, ids: Sequence[int]) -> None:
        """Cancels requests and drops their events. May be called from a finalizer."""
        for request_id in ids:
            self._boxes.pop(request_id, None)
        self.cancel(ids)

    def answer(self, request_id: int) -> Answer | None:
        """The answer to a request so far; None if its last event was collected."""
        answer = self.scheduler.answer(request_id)
        if answer is not None:
            return answer
        box = self._boxes.get(request_id)
        return box[-1].answer if box else None

    def close(self) -> None:
        """Ends all requests with "abort", and refuses new ones.

        Raises:
            UsageError: a signal handler called it during a step.
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
            _, led = self._run_turn((), ())
            if not led:
                self._wait_for_a_step(())

    def _run_turn(
        self, ids: Sequence[int], receivers: Sequence[Receiver], goes_on: GoesOn | None = None
    ) -> tuple[list[Event], bool]:
        """Collects the events of these requests. Without any, steps first, unless another thread leads.

        Returns:
            The events, and whether this thread led.
        """
        turn = _Turn()
        try:
            with DeferredSignals(self.scheduler.session.interrupt):
                with self._lock:
                    events = self._collect(ids)
                    led = not events and self._become_leader(turn)
                if led:
                    self._step(goes_on)
                    with self._lock:
                        events = self._collect(ids)
                for receive in receivers:
                    receive(events)
        finally:
            if self._leader is turn:  # an exception was raised between two lines
                self._leader = None
        return events, led

    def _wait_for_a_step(self, ids: Sequence[int]) -> None:
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            if self._leader is None or self._has_events(ids):
                return
            self._gates.append(gate)
        gate.acquire(timeout=_CHECK_S)

    def _become_leader(self, turn: _Turn) -> bool:
        """Makes this turn the leader, unless there is one. Returns whether it leads."""
        if self._leader is not None and self._leader.is_here:
            raise _within_a_step()
        if self._leader is None:
            self._leader = turn
        return self._leader is turn

    def _step(self, goes_on: GoesOn | None) -> None:
        """Steps once, and as long as `goes_on` says while there is no event."""
        scheduler = self.scheduler
        try:
            while not (events := scheduler.step()) and goes_on is not None and not scheduler.idle and goes_on():
                pass
            self._deliver(events)
        except BaseException:
            self._deliver_lost()
            raise
        finally:
            self._leader = None  # first, because the rest may be interrupted
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
        """Delivers an error for each request that ended without an event in a step that was broken off."""
        with self._lock:
            for request_id, box in list(self._boxes.items()):
                if self.scheduler.answer(request_id) is None and not (box and box[-1].is_last):
                    box.append(Event(request_id, error=_broken_off()))

    def _has_events(self, ids: Sequence[int]) -> bool:
        return any(self._boxes.get(request_id) for request_id in ids)

    def _collect(self, ids: Sequence[int]) -> list[Event]:
        """Removes and returns the events of these requests. A box is removed with its last event."""
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


class _Turn:
    """One call that may step."""

    __slots__ = ("_thread",)

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    @property
    def is_here(self) -> bool:
        """Whether this thread made the turn, and so asks during its own step."""
        return self._thread == threading.get_ident()


class Ticket:
    """Gives the events of some requests. If it is dropped, requests that have not ended are cancelled."""

    def __init__(self, driver: Driver, ids: Sequence[int]) -> None:
        self.ids = tuple(ids)
        self._open = dict.fromkeys(ids)
        self._driver = driver

    @property
    def is_done(self) -> bool:
        """Whether every request has ended."""
        return not self._open

    def wait(self, *receivers: Receiver) -> list[Event]:
        """Waits for the next events: at least one, unless all requests have ended.

        Args:
            receivers: called with the events before a signal handler can run.

        Raises:
            KeyboardInterrupt: Ctrl-C. The requests go on until they are cancelled.
        """
        return self._driver.wait(list(self._open), self._note, *receivers) if self._open else []

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.is_last:
                self._open.pop(event.id, None)

    def events(self) -> Iterator[Event]:
        """Yields all events until the last request has ended."""
        while self._open:
            yield from self.wait()

    def answer(self, request_id: int) -> Answer | None:
        """The answer to a request so far; None if its last event was collected."""
        return self._driver.answer(request_id)

    def cancel(self) -> None:
        """Ends the requests as soon as possible; their last events still come."""
        self._driver.cancel(list(self._open))

    def __del__(self) -> None:
        if self._open:
            self._driver.forget(list(self._open))


def _nothing() -> None:
    """Does nothing when a signal arrives, because there is no pass to stop."""


def _broken_off() -> UsageError:
    return UsageError("the answer was broken off by an error in another thread", hint="ask again")


def _closed() -> UsageError:
    return UsageError("the model has been closed", hint="load it again")


def _within_a_step() -> UsageError:
    return UsageError("this thread is generating an answer already", hint="do not call this in a signal handler")
