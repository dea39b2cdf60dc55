"""The line of requests that wait for a slot, and whose turn it is.

Those of higher priority go first. Of equals, the client goes first that has the fewest slots; then the one that was
served longest ago; then the one that asked first. So a client with a hundred requests does not keep others waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import Final, Generic, Protocol, TypeVar

_MOST_REMEMBERED: Final = 1024  # clients of whom it is known when they were served last


class Asker(Protocol):
    """What waits: its number, its priority, and whose it is."""

    @property
    def id(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def client(self) -> str: ...


T = TypeVar("T", bound=Asker)


class Line(Generic[T]):
    """Requests that wait, each in the line of its priority and client. `add` may be called from any thread."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, str], dict[int, T]] = {}  # in the order in which they came
        self._served: dict[str, int] = {}  # client -> its last turn, the oldest first
        self._n_turns = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return sum(len(line) for line in list(self._lines.values()))

    def n_from(self, priority: int) -> int:
        """The number of requests of this priority and of higher ones."""
        return sum(len(line) for (each, _), line in list(self._lines.items()) if each >= priority)

    def add(self, job: T, *, goes_first: bool = False) -> None:
        """Puts a request at the end of its client's line, or at its beginning."""
        key = (job.priority, job.client)
        with self._lock:
            if goes_first:
                self._lines[key] = {job.id: job, **self._lines.get(key, {})}
            else:
                self._lines.setdefault(key, {})[job.id] = job

    def next(self, running: Iterable[T], without: Collection[int] = ()) -> T | None:
        """The request whose turn it is, which stays in the line; None if there is none.

        Args:
            running: the requests that have slots.
            without: numbers of requests that are passed over.
        """
        n_slots: dict[str, int] = {}
        for job in running:
            n_slots[job.client] = n_slots.get(job.client, 0) + 1
        with self._lock:
            firsts = [
                next((job for number, job in line.items() if number not in without), None)
                for line in self._lines.values()
            ]
            return min(
                (job for job in firsts if job is not None),
                key=lambda job: (
                    -job.priority, n_slots.get(job.client, 0), self._served.get(job.client, -1), job.id,
                ),
                default=None,
            )  # fmt: skip

    def serve(self, job: T) -> None:
        """Removes a request that has got its slot, and notes its client's turn."""
        self.remove(job)
        self._served.pop(job.client, None)
        self._served[job.client] = self._n_turns
        self._n_turns += 1
        if len(self._served) > _MOST_REMEMBERED:
            del self._served[next(iter(self._served))]

    def remove(self, job: T) -> None:
        """Removes a request, if it waits."""
        with self._lock:
            key = (job.priority, job.client)
            line = self._lines.get(key, {})
            line.pop(job.id, None)
            if not line:
                self._lines.pop(key, None)
