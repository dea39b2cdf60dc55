"""Who asks, and what ends with their request: known to whatever answers it, without an argument everywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from mimo_gguf.runtime.scheduler import Request

BACKGROUND = -1  # the priority of work that nobody waits for


@dataclass(frozen=True, slots=True)
class Asking:
    """One request to the server, or one row of a batch.

    Attributes:
        client: whose it is. Clients have their turns in the queue.
        priority: of its requests to the scheduler.
        ends: what to undo when its whole answer was sent.
    """

    client: str = ""
    priority: int = 0
    ends: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def stamped(self, request: Request, every_s: float) -> Request:
        """The request as one of this client's, whose text is wanted every so many seconds."""
        return replace(request, client=self.client, priority=self.priority, every_s=every_s)


_CURRENT: ContextVar[Asking] = ContextVar("asking")


@contextlib.contextmanager
def asking(client: str, priority: int = 0) -> Iterator[Asking]:
    """Whatever is done in the block, by tasks begun there too, is done for this client."""
    found = Asking(client, priority)
    token = _CURRENT.set(found)
    try:
        with found.ends:
            yield found
    finally:
        _CURRENT.reset(token)


def who_asks() -> Asking:
    """Who asks now; a stranger outside `asking`."""
    return _CURRENT.get(None) or Asking()
