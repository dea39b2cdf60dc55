"""Server-sent events: chunks as lines, comments while nothing comes, and an end as soon as the client is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mimo_gguf.server.failures import failure_of

T = TypeVar("T")
KEEP_ALIVE: Final = ": keep-alive\n\n"
DONE: Final = "data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


class EventStream(Response):
    """A response of server-sent events. The source is closed if the client goes away, and so is what feeds it."""

    media_type = "text/event-stream"

    def __init__(self, first: str, rest: AsyncGenerator[str, None]) -> None:
        """Makes the response of a first line, which came before the status was sent, and the rest."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientGone):
            await until_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._rest):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._first.encode(), "more_body": True})
            async for line in self._rest:
                await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


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


async def with_comments(lines: AsyncGenerator[str, None], every_s: float) -> AsyncGenerator[str, None]:
    """The lines, and a comment whenever none has come for `every_s` seconds."""
    coming: asyncio.Task[str] | None = None
    try:
        while True:
            if coming is None:
                coming = asyncio.create_task(_next(lines))
            done, _ = await asyncio.wait({coming}, timeout=every_s)
            if not done:
                yield KEEP_ALIVE
                continue
            try:
                line = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield line
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await lines.aclose()


async def _next(lines: AsyncGenerator[str, None]) -> str:
    return await anext(lines)


async def event_lines(
    events: AsyncGenerator[dict[str, Any], None], failure_event: Callable[[Exception], dict[str, Any]]
) -> AsyncGenerator[str, None]:
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
                yield f"event: {event['type']}\n{data_line(event)}"
                begun = True
        except Exception as error:
            if not begun:
                raise
            event = failure_event(error)
            yield f"event: {event['type']}\n{data_line(event)}"


async def data_lines(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[str, None]:
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


def data_line(document: dict[str, Any]) -> str:
    """A document as one event."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"
