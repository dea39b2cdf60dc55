"""Brings the events of requests from the one thread that steps to any number of asyncio tasks, a box for each."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from mimo_gguf.runtime.driver import Driver, Ticket
from mimo_gguf.runtime.scheduler import Event


class Box:
    """A queue of events from the thread that steps to one task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    async def take(self) -> list[Event]:
        """What has come, at least one event. Raises what broke everything off."""
        found = [await self._events.get()]
        while not self._events.empty():
            found.append(self._events.get_nowait())
        for each in found:
            if isinstance(each, Exception):
                raise each
        return [each for each in found if isinstance(each, Event)]

    def put(self, event: Event | Exception) -> None:
        """From any thread. Raises RuntimeError if the task's loop is closed."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)


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
                for event in self.driver.wait(ids):
                    self._hand_out(event)
            except Exception as error:
                self._break_off(error)

    def _open(self) -> list[int]:
        """The ids of the requests that have not ended; if there are none, the thread ends."""
        with self._lock:
            if not self._boxes:
                self._thread = None
            return list(self._boxes)

    def _hand_out(self, event: Event) -> None:
        box, ticket = self._boxes[event.id]
        if event.is_last:
            with self._lock:
                del self._boxes[event.id]
        try:
            box.put(event)
        except RuntimeError:  # the task's loop was closed
            ticket.cancel()

    def _break_off(self, error: Exception) -> None:
        with self._lock:
            boxes = {id(box): box for box, _ in self._boxes.values()}
            self._boxes.clear()
        for box in boxes.values():
            try:
                box.put(error)
            except RuntimeError:
                continue
