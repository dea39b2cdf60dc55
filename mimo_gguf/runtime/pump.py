"""Brings the events of requests from the one thread that steps to any number of asyncio tasks, a box for each."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mimo_gguf.runtime.driver import Driver, Ticket
from mimo_gguf.runtime.scheduler import Event

_TURNS: Final = 4  # of a loop, from a new connection to its request
_TURNS_S: Final = 0.005  # that a step waits for them at most


class Box:
    """A queue of events from the thread that steps to one task.

    Attributes:
        loop: the task's.
        ticket: of the requests whose events they are.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.loop, self.ticket = asyncio.get_running_loop(), ticket
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


class _Post:
    """Brings events to the boxes of one loop, however many there are with one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._new: list[tuple[Box, Event]] = []

    def put(self, new: Sequence[tuple[Box, Event]]) -> None:
        """Adds events. Raises RuntimeError if the loop was closed."""
        with self._lock:
            is_coming = bool(self._new) and not self._loop.is_closed()
            self._new += new
        if not is_coming:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        """Fills the boxes. In the loop's thread."""
        with self._lock:
            new, self._new = self._new, []
        found: dict[Box, list[Event]] = {}
        for box, event in new:
            found.setdefault(box, []).append(event)
        for box, events in found.items():
            box.put(events)


@dataclass(slots=True)
class Pump:
    """Delivers events to tasks from one thread, which steps as long as there are requests and then ends.

    Attributes:
        linger_s: seconds that the thread waits for further requests before it ends: a new one delays a first token.
        between: called by that thread between two passes, where the model is not at work.
    """

    driver: Driver
    linger_s: float = 0.0
    between: Callable[[], None] = lambda: None
    _boxes: dict[int, Box] = field(default_factory=dict)
    _posts: dict[asyncio.AbstractEventLoop, _Post] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _has_new: bool = False  # whether requests have come since the thread looked
    _gathers: bool = False  # whether a loop is about to queue requests
    _thread: threading.Thread | None = None
    _is_joined: bool = False

    def gather(self) -> None:
        """Has the next step wait for some turns of the loop, which take no time unless it has something to do.

        Call it before a request is queued.

        Requests that come at the same moment are queued one after another. Their prompts are then read in one pass: a
        pass for the first one alone would keep the others waiting, and take their processor.
        """
        if not self._gathers:
            self._gathers = True
            self._turn(asyncio.get_running_loop(), _TURNS)

    def _turn(self, loop: asyncio.AbstractEventLoop, n_left: int) -> None:
        if n_left:
            loop.call_soon(self._turn, loop, n_left - 1)
            return
        with self._changed:
            self._gathers = False
            self._changed.notify()

    def listen(self, ticket: Ticket) -> Box:
        """Makes a box for the events of these requests."""
        box = Box(ticket)
        with self._changed:
            self._boxes.update(dict.fromkeys(ticket.ids, box))
            self._has_new = True
            self._posts.setdefault(box.loop, _Post(box.loop))
            if self._thread is None and self._boxes:
                self._thread = threading.Thread(target=self._run, name="mimo-gguf-async")
                self._thread.start()
            self._changed.notify()
        return box

    def join(self) -> None:
        """Waits for the thread's end."""
        with self._changed:
            self._is_joined = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while ids := self._open():
            if not _program_runs():  # nobody needs the answers
                self.driver.cancel(ids)
            try:
                self._hand_out(self.driver.wait(ids, goes_on=self._goes_on))
                self.between()  # not before a pass, where a first token would wait for it
            except Exception as error:
                self._break_off(error)

    def _goes_on(self) -> bool:
        """Whether the requests are still those of the last look."""
        self.between()
        return not self._has_new and not self._gathers and _program_runs()

    def _open(self) -> list[int]:
        """The ids of the requests that have not ended; if there are none and none come, the thread ends."""
        with self._changed:
            if not self._boxes:
                self._posts.clear()
                self._changed.wait_for(lambda: self._boxes or self._is_joined, self.linger_s)
            if not self._changed.wait_for(lambda: not self._gathers, _TURNS_S):
                self._gathers = False  # the loop has ended, or is busy
            if not self._boxes:
                self._thread = None
            self._has_new = False
            return list(self._boxes)

    def _hand_out(self, events: Sequence[Event]) -> None:
        """Brings the events of a step to their tasks, all those of a loop together."""
        found: dict[asyncio.AbstractEventLoop, list[tuple[Box, Event]]] = {}
        with self._changed:
            for event in events:
                box = self._boxes.pop(event.id) if event.is_last else self._boxes[event.id]
                found.setdefault(box.loop, []).append((box, event))
            posts = {loop: self._posts[loop] for loop in found}
        for loop, new in found.items():
            try:
                posts[loop].put(new)
            except RuntimeError:  # the tasks' loop was closed
                for box, _ in new:
                    box.ticket.cancel()

    def _break_off(self, error: Exception) -> None:
        with self._changed:
            boxes = set(self._boxes.values())
            self._boxes.clear()
        for box in boxes:
            with contextlib.suppress(RuntimeError):  # the task's loop was closed
                box.loop.call_soon_threadsafe(box.put, (), error)


def _program_runs() -> bool:
    return threading.main_thread().is_alive()
