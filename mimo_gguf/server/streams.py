"""Server-sent events: chunks as lines, comments while nothing comes, and an end as soon as the client is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final, TypeVar

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mimo_gguf.server.failures import failure_of

T = TypeVar("T")
KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


class EventStream(Response):
    """A response of server-sent events. The source is closed if the client goes away, and so is what feeds it.

    While nothing comes the client gets comments. That takes one task for a stream, none for a line: with eight streams
    the server has less than a millisecond for all their lines of one pass.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], every_s: float) -> None:
        """Makes the response of a first line, which came before the status was sent, and the rest.

        Args:
            every_s: seconds of silence after which a comment is sent.
        """
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._first, self._rest, self._every_s = first, rest, every_s
        self._sent_s = 0.0

    @classmethod
    async def begin(cls, lines: AsyncGenerator[bytes, None], every_s: float) -> EventStream:
        """The response of lines. It waits for the first one, so that a failure still has its status, but not for long.

        Raises:
            Exception: what the lines raised instead of the first one.
        """
        coming = asyncio.create_task(_next(lines))
        try:
            done, _ = await asyncio.wait({coming}, timeout=every_s)
        except BaseException:
            await _give_up(coming, lines)
            raise
        return cls(coming.result(), lines, every_s) if done else cls(KEEP_ALIVE, _late(coming, lines), every_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientGone):
            await until_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._rest):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(send, self._first)
            comments = asyncio.create_task(self._comment(send))
            try:
                async for line in self._rest:
                    await self._send(send, line)
            finally:
                comments.cancel()
                await asyncio.gather(comments, return_exceptions=True)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, line: bytes) -> None:
        self._sent_s = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": line, "more_body": True})

    async def _comment(self, send: Send) -> None:
        """Sends a comment whenever nothing was sent for some seconds."""
        time = asyncio.get_running_loop().time
        while True:
            left_s = self._sent_s + self._every_s - time()
            if left_s > 0:
                await asyncio.sleep(left_s)
            else:
                await self._send(send, KEEP_ALIVE)


async def _late(coming: asyncio.Task[bytes], rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The line that is still coming, and the rest."""
    try:
        yield await coming
        async for line in rest:
            yield line
    finally:
        await _give_up(coming, rest)


async def _give_up(coming: asyncio.Task[bytes], rest: AsyncGenerator[bytes, None]) -> None:
    coming.cancel()
    await asyncio.gather(coming, return_exceptions=True)
    await rest.aclose()


async def _next(lines: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(lines)


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client closes the connection.

    Args:
        receive: ASGI's, after the whole body was read.

    Raises:
        ClientGone: the client closed the connection first.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_wait_for_end(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_for_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def event_lines(
    events: AsyncGenerator[dict[str, Any], None], failure_event: Callable[[Exception], dict[str, Any]]
) -> AsyncGenerator[bytes, None]:
    """A stream of named events: each as `event: TYPE` and `data: {...}`. What goes wrong is an event, too.

    Args:
        failure_event: makes the event of what went wrong after the first event.

    Raises:
        Exception: what went wrong before the first event, so that the status can say it.
    """
    begun = False
    async with contextlib.aclosing(events):
        try:
            async for event in events:
                yield event_line(event)
                begun = True
        except Exception as error:
            if not begun:
                raise
            yield event_line(failure_event(error))


async def data_lines(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    """OpenAI's stream: each chunk as `data: {...}`, then `[DONE]`. What goes wrong after the first chunk is a line.

    Raises:
        Exception: what went wrong before the first chunk, so that the status can say it.
    """
    begun = False
    async with contextlib.aclosing(chunks):
        try:
            async for chunk in chunks:
                yield data_line(chunk)
                begun = True
        except Exception as error:
            if not begun:
                raise
            yield data_line(failure_of(error).as_json())
    yield DONE


def data_line(document: dict[str, Any]) -> bytes:
    """A document as one event."""
    return b"data: " + to_json(document) + b"\n\n"


def event_line(event: dict[str, Any]) -> bytes:
    """A document as one event, named by its type."""
    return f"event: {event['type']}\n".encode() + data_line(event)
