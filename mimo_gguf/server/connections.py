"""Connections that cost something and bring nothing: slow headers, clients that do not read, too many at a time.

uvicorn has no limit for these. A body has its own limit, in `Api`.
"""

from __future__ import annotations

import asyncio
import http
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mimo_gguf.server.failures import Failure

_HEAD_BYTES: Final = 1 << 14  # of the path and the headers of a request
_NO_HTTP: Final = Failure(400, "this is not a request of HTTP", code="invalid_http")
_TOO_MANY: Final = Failure(
    503, "there are too many connections", "server_error", "too_many_connections", retry_after_s=5
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of connections.

    Attributes:
        n: connections at a time.
        head_s: seconds in which the headers of a request must have come.
        send_s: seconds that a client may leave unread what is sent to it.
    """

    n: int = 512
    head_s: float = 30.0
    send_s: float = 60.0


class Connection(HttpToolsProtocol):
    """A connection that is closed if it keeps to none of the limits. `limited` makes a class with other limits."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    _head: asyncio.TimerHandle | None = None
    _n_head_bytes = 0  # of the headers that are still coming
    _is_in_head = False
    _unread: asyncio.TimerHandle | None = None
    _earlier: Sequence[RequestResponseCycle] = ()  # those that are answered before the last request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request, or refuses the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.n:
            self._answer_and_close(_TOO_MANY)
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Reads what has come. The time for headers runs from the first byte of a request to their last."""
        super().data_received(data)
        if self._is_in_head:
            self._n_head_bytes += len(data)
            if self._n_head_bytes > _HEAD_BYTES:
                self.send_400_response("headers without end")
        if self._is_idle:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def on_message_begin(self) -> None:
        """Begins to count the bytes of headers."""
        super().on_message_begin()
        self._is_in_head, self._n_head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Begins to answer. Raises ValueError, which httptools reports as an error of parsing, if they are too long."""
        self._is_in_head = False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > _HEAD_BYTES:
            raise ValueError("too many bytes of headers")
        before = self.cycle
        super().on_headers_complete()
        if before is not None and not before.response_complete:
            self._earlier = [cycle for cycle in (*self._earlier, before) if not cycle.response_complete]

    def pause_writing(self) -> None:
        """Notes that the client is not reading."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Notes that the client reads again."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection on which no further request has come."""
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all waiting, and every answer: uvicorn ends only that to the last request."""
        for cycle in self._earlier:
            cycle.disconnected = True
            cycle.message_event.set()
        self._stop_waiting()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP in OpenAI's form, if no other answer has begun."""
        if self._is_idle or not self.cycle.response_started:
            self._answer_and_close(_NO_HTTP)
        else:
            self._close()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._head is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self.limits.head_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        if self._is_idle:
            self._close()

    def _close(self) -> None:
        """Closes the connection, with what the client does not read of the last answer."""
        if not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(self.limits.send_s, self.transport.abort)

    def _answer_and_close(self, failure: Failure) -> None:
        body = json.dumps(failure.as_json()).encode()
        lines = [
            f"HTTP/1.1 {failure.status} {http.HTTPStatus(failure.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name.lower()}: {value}" for name, value in failure.headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self._close()


def limited(limits: ConnectionLimits) -> type[Connection]:
    """The class of connections with these limits."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
