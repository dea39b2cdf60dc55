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
    """A queue of events from the thread that steps to one task.

    Attributes:
        loop: the task's.
        ticket: of the requests whose events they are.
        has_begun: whether an event with a token was handed out. Belongs to the thread that steps.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.loop, self.ticket = asyncio.get_running_loop(), ticket
        self._events: list[Event] = []
        self._error: Exception | None = None
        self.has_begun = False
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
    """Brings events to the boxes of one loop.

    What comes less than `every_s` after a delivery waits for the next one, because waking a loop and its tasks costs
    more than a pass of a small model. The first token and the last event of a request never wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, every_s: float) -> None:
        self._loop, self._every_s = loop, every_s
        self._lock = threading.Lock()
        self._new: list[tuple[Box, Event]] = []
        self._is_due = False  # whether a delivery will follow by itself
        self._timer: asyncio.TimerHandle | None = None

    def put(self, new: Sequence[tuple[Box, Event]], *, at_once: bool) -> None:
        """Adds events. Raises RuntimeError if the loop was closed."""
        with self._lock:
            self._new += new
            if self._is_due and not at_once and not self._loop.is_closed():
                return
            self._is_due = True
        self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        """Fills the boxes. In the loop's thread."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            new, self._new = self._new, []
            self._is_due = bool(new) and self._every_s > 0
        self._timer = self._loop.call_later(self._every_s, self._deliver) if self._is_due else None
        found: dict[Box, list[Event]] = {}
        for box, event in new:
            found.setdefault(box, []).append(event)
        for box, events in found.items():
            box.put(events)


@dataclass(slots=True)
class Pump:
    """Delivers events to tasks from one thread, which steps as long as there are requests and then ends.

    Attributes:
        every_s: least seconds between two deliveries of one request, but for its first token and its last event.
        linger_s: seconds that the thread waits for further requests before it ends: a new one delays a first token.
    """

    driver: Driver
    every_s: float = 0.0
    linger_s: float = 0.0
    _boxes: dict[int, Box] = field(default_factory=dict)
    _posts: dict[asyncio.AbstractEventLoop, _Post] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _is_joined: bool = False

    def listen(self, ticket: Ticket) -> Box:
        """Makes a box for the events of these requests."""
        box = Box(ticket)
        with self._changed:
            self._boxes.update(dict.fromkeys(ticket.ids, box))
            self._posts.setdefault(box.loop, _Post(box.loop, self.every_s))
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
            if not threading.main_thread().is_alive():  # the program has ended: nobody needs the answers
                self.driver.cancel(ids)
            try:
                self._hand_out(self.driver.wait(ids, one_step=True))
            except Exception as error:
                self._break_off(error)

    def _open(self) -> list[int]:
        """The ids of the requests that have not ended; if there are none and none come, the thread ends."""
        with self._changed:
            if not self._boxes:
                self._posts.clear()
                self._changed.wait_for(lambda: self._boxes or self._is_joined, self.linger_s)
            if not self._boxes:
                self._thread = None
            return list(self._boxes)

    def _hand_out(self, events: Sequence[Event]) -> None:
        """Brings the events of a step to their tasks, all those of a loop together."""
        found: dict[asyncio.AbstractEventLoop, list[tuple[Box, Event]]] = {}
        at_once: set[asyncio.AbstractEventLoop] = set()
        with self._changed:
            for event in events:
                box = self._boxes[event.id]
                found.setdefault(box.loop, []).append((box, event))
                if event.is_last:
                    del self._boxes[event.id]
                if event.is_last or (event.n_tokens and not box.has_begun):
                    box.has_begun = True
                    at_once.add(box.loop)
            posts = {loop: self._posts[loop] for loop in found}
        for loop, new in found.items():
            try:
                posts[loop].put(new, at_once=loop in at_once)
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
