"""Brings the events of requests from the one thread that steps to any number of asyncio tasks, a box for each."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from mimo_gguf.runtime.driver import Driver, Ticket
from mimo_gguf.runtime.scheduler import Event


class Box:
    """A queue of events from the thread that steps to one task."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._error: Exception | None = None
        self._has_some = asyncio.Event()

    async def take(self) -> list[Event]:
        """What has come, at least one event. Raises what broke everything off."""
        await self._has_some.wait()
        self._has_some.clear()
        if self._error is not None:
            raise self._error
        found, self._events = self._events, []
        return found

    def put(self, events: Sequence[Event], error: Exception | None = None) -> None:
        """Adds events, or what broke everything off. In the loop's thread."""
        self._events += events
        self._error = self._error or error
        self._has_some.set()


@dataclass(slots=True)
class Pump:
    """Delivers events to tasks from one thread, which steps as long as there are requests and then ends."""

    driver: Driver
    _boxes: dict[int, tuple[Box, Ticket]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def listen(self, ticket: Ticket) -> Box:
        """Makes a box for the events of these requests."""
        box = Box()
        with self._lock:
            self._boxes.update((number, (box, ticket)) for number in ticket.ids)
            if self._thread is None and self._boxes:
                self._thread = threading.Thread(target=self._run, name="mimo-gguf-async")
                self._thread.start()
        return box

    def join(self) -> None:
        """Waits for the thread's end."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while ids := self._open():
            if not threading.main_thread().is_alive():  # the program has ended: nobody needs the answers
                self.driver.cancel(ids)
            try:
                self._hand_out(self.driver.wait(ids))
            except Exception as error:
                self._break_off(error)

    def _open(self) -> list[int]:
        """The ids of the requests that have not ended; if there are none, the thread ends."""
        with self._lock:
            if not self._boxes:
                self._thread = None
            return list(self._boxes)

    def _hand_out(self, events: Sequence[Event]) -> None:
        """Brings the events of a step to their tasks, with one call for each loop: each wakes it from its sleep."""
        found: dict[Box, list[Event]] = {}
        tickets: dict[Box, Ticket] = {}
        with self._lock:
            for event in events:
                box, tickets[box] = self._boxes.pop(event.id) if event.is_last else self._boxes[event.id]
                found.setdefault(box, []).append(event)
        for loop in {box.loop for box in found}:
            own = {box: new for box, new in found.items() if box.loop is loop}
            try:
                loop.call_soon_threadsafe(_put_all, own)
            except RuntimeError:  # the tasks' loop was closed
                for box in own:
                    tickets[box].cancel()

    def _break_off(self, error: Exception) -> None:
        with self._lock:
            boxes = {box for box, _ in self._boxes.values()}
            self._boxes.clear()
        for box in boxes:
            with contextlib.suppress(RuntimeError):  # the task's loop was closed
                box.loop.call_soon_threadsafe(box.put, (), error)


def _put_all(found: dict[Box, list[Event]]) -> None:
    for box, events in found.items():
        box.put(events)
