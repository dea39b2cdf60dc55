"""Answers for any number of threads: whoever waits for one steps the scheduler for all, one thread at a time.

There is no thread of its own. The thread that finds nobody stepping does it, and puts what comes for the others into
their boxes; it goes away with what it wanted, and the next one that waits takes over. So a step is never under way
while nobody wants anything, and nothing has to be stopped at the exit of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Final

from mimo_gguf.chat.answer import Answer
from mimo_gguf.core.errors import UsageError
from mimo_gguf.runtime.interrupts import DeferredInterrupt
from mimo_gguf.runtime.scheduler import Event, Request, Scheduler

_CHECK_S: Final = 1.0  # how often a thread that waits looks for itself, should a notice have been lost


class Driver:
    """Owns a scheduler and the boxes in which its events wait for those that want them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._leader: int | None = None  # the thread that steps
        self._n_followers = 0  # threads that wait for it
        self._boxes: dict[int, list[Event]] = {}
        self._closed = False

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Queues requests; the ticket by which their events come.

        Raises:
            UsageError: the model was closed, or a prompt is empty or too long; nothing is queued then.
        """
        for request in requests:
            self.scheduler.session.slot.check_prompt(request.prompt)
        with DeferredInterrupt(lambda: None), self._lock:
            if self._closed:
                raise _closed()
            ids = [self.scheduler.add(request) for request in requests]
            self._boxes.update((request_id, []) for request_id in ids)
            return Ticket(self, ids)

    def wait(self, ids: Sequence[int]) -> list[Event]:
        """Events of these requests, at least one, stepping for all as long as there are none.

        Raises:
            UsageError: called from within a step, by a signal handler of this thread.
            KeyboardInterrupt: Ctrl-C, between two steps.
        """
        while True:
            with DeferredInterrupt(self.scheduler.session.interrupt):
                with self._lock:
                    events = self._collect(ids)
                    leads = not events and self._take_lead()
                if leads:
                    self._step()
                    events = self._collect(ids)
            if events:
                return events
            if not leads:
                self._wait_for_a_step(ids)

    def cancel(self, ids: Sequence[int]) -> None:
        """Ends requests as soon as possible. From a signal handler or a finalizer, too."""
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
        with self._lock:
            if self._leader == threading.get_ident():
                raise _within_a_step()
            self._closed = True
        self.scheduler.cancel_all()
        self.scheduler.session.interrupt()
        while not self.scheduler.idle:
            with self._lock:
                leads = self._take_lead()
            if leads:
                self._step()
            else:
                self._wait_for_a_step(())

    def _wait_for_a_step(self, ids: Sequence[int]) -> None:
        with self._lock:
            self._n_followers += 1
            try:
                self._changed.wait_for(lambda: self._leader is None or self._has_mail(ids), _CHECK_S)
            finally:
                self._n_followers -= 1

    def _take_lead(self) -> bool:
        if self._leader == threading.get_ident():
            raise _within_a_step()
        leads = self._leader is None
        if leads:
            self._leader = threading.get_ident()
        return leads

    def _step(self) -> None:
        try:
            self._deliver(self.scheduler.step())
        except BaseException:
            self._deliver_lost()
            raise
        finally:
            with self._lock:
                self._leader = None
                if self._n_followers:
                    self._changed.notify_all()

    def _deliver(self, events: Sequence[Event]) -> None:
        with self._lock:
            for event in events:
                if event.id in self._boxes:
                    self._boxes[event.id].append(event)

    def _deliver_lost(self) -> None:
        """Tells those whose requests have ended in a step that was broken off."""
        lost = UsageError("the answer was broken off by an error in another thread", hint="ask again")
        with self._lock:
            for request_id, box in list(self._boxes.items()):
                if self.scheduler.answer(request_id) is None and not (box and box[-1].is_last):
                    box.append(Event(request_id, error=lost))

    def _has_mail(self, ids: Sequence[int]) -> bool:
        return any(self._boxes.get(request_id) for request_id in ids)

    def _collect(self, ids: Sequence[int]) -> list[Event]:
        """Takes the events of these requests out of their boxes, which go with the last one."""
        events: list[Event] = []
        for request_id in ids:
            box = self._boxes.get(request_id)
            if not box:
                continue
            events += box
            if box[-1].is_last:
                self._boxes.pop(request_id, None)
            else:
                self._boxes[request_id] = []
        return events


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

    def wait(self) -> list[Event]:
        """The next events, at least one unless all have ended.

        Raises:
            KeyboardInterrupt: Ctrl-C. The requests go on until they are cancelled.
        """
        events = self._driver.wait(list(self._open)) if self._open else []
        for event in events:
            if event.is_last:
                self._open.pop(event.id, None)
        return events

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


def _closed() -> UsageError:
    return UsageError("the model has been closed", hint="load it again")


def _within_a_step() -> UsageError:
    return UsageError("an answer is being generated below", hint="do not ask from a signal handler")
