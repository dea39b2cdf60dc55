"""An answer as the page shows it: events with its text, what of its HTML has changed, and how far it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mimo_gguf.chat.reasoning import THINK_CLOSE, THINK_OPEN
from mimo_gguf.core.errors import UsageError
from mimo_gguf.runtime.scheduler import Event
from mimo_gguf.server.answers import Answers, Growing
from mimo_gguf.server.jobs import Job
from mimo_gguf.server.page.growing import GrowingText
from mimo_gguf.server.requests import ChatBody

_SOONEST_S: Final = 0.05  # between two renderings
_SHARE: Final = 0.05  # of the time that rendering may take, so that it does not slow the model
_COUNTS_S: Final = 0.5  # between two counts of drafts


def begun_answer(body: ChatBody) -> tuple[str, str]:
    """The thinking and the text of a last message that is to be continued.

    Raises:
        UsageError: that message is not the model's, or more than one answer is wished for.
    """
    if body.n not in (None, 1) or body.tools:
        raise UsageError("the page shows one answer, without tools", hint="POST /v1/chat/completions")
    if not body.continue_final_message:
        return "", ""
    last = body.messages[-1]
    if last.role != "assistant" or not isinstance(last.content, str):
        raise UsageError("the last message is not a text of the model", hint="leave continue_final_message out")
    head, opened, rest = last.content.partition(THINK_OPEN)
    if not opened or head.strip():
        return "", last.content
    thinking, _, text = rest.partition(THINK_CLOSE)
    return thinking.lstrip("\n"), text.lstrip("\n")


async def with_pauses(
    events: AsyncGenerator[Event, None], pause: Callable[[], float | None]
) -> AsyncGenerator[Event | None, None]:
    """The events, and None whenever the seconds that `pause` gives have gone by without one."""
    coming: asyncio.Task[Event] | None = None
    try:
        while True:
            coming = coming or asyncio.create_task(_next(events))
            done, _ = await asyncio.wait({coming}, timeout=pause())
            if not done:
                yield None
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield event
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()


async def _next(events: AsyncGenerator[Event, None]) -> Event:
    return await anext(events)


def inside_thinking(job: Job) -> Job:
    """The same job, whose prompt ends within the model's thinking."""
    (asked,) = job.asked
    requests = tuple(replace(request, opened="") for request in asked.requests)
    return replace(job, asked=(replace(asked, requests=requests),))


@dataclass(slots=True)
class PageAnswer:
    """One answer on its way to the page."""

    answers: Answers
    window: int
    thinking: GrowingText = field(default_factory=GrowingText)
    text: GrowingText = field(default_factory=GrowingText)
    _new: dict[str, str] = field(default_factory=lambda: {"thinking": "", "text": ""})
    _next_s: float = 0.0
    _next_counts_s: float = 0.0
    _n_tokens: int = 0

    async def events(self, head: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yields what the page shows, as documents with a `type`: begin, reading, more, end.

        Args:
            head: further fields of the first event.

        Raises:
            Exception: as `Call.events`.
        """
        (growing,) = self.answers.all
        yield {"type": "begin", "prompt": len(growing.prompt.tokens), "window": self.window, **head}
        async with aclosing(with_pauses(self.answers.call.events(), self._pause)) as events:
            async for event in events:
                if event is not None:
                    if event.n_to_read:
                        yield {"type": "reading", "read": event.n_read, "of": event.n_to_read}
                    self._note(growing, event)
                is_last = event is not None and event.is_last
                if is_last or self._pause() == 0.0:
                    yield await self._more(growing, ended=is_last)
        yield {
            "type": "end", "finish": growing.finish, "usage": self.answers.usage(), "timings": self.answers.timings(),
        }  # fmt: skip

    def _pause(self) -> float | None:
        """Seconds until what is new is rendered; None if nothing is new."""
        return max(self._next_s - time.monotonic(), 0.0) if any(self._new.values()) else None

    def _note(self, growing: Growing, event: Event) -> None:
        delta = growing.add(event, None, ran_out=self.answers.call.ran_out)
        self._n_tokens = max(self._n_tokens, event.n_tokens)
        self._new["thinking"] += delta.reasoning
        self._new["text"] += delta.text

    async def _more(self, growing: Growing, *, ended: bool) -> dict[str, Any]:
        """The event of what is new, rendered."""
        began = time.monotonic()
        document: dict[str, Any] = {"type": "more", "tokens": self._n_tokens, "thought": growing.n_reasoning}
        document |= await asyncio.to_thread(self._rendered, ended=ended)
        if began >= self._next_counts_s:
            self._next_counts_s = began + _COUNTS_S
            so_far = self.answers.call.so_far(self.answers.call.ids[0])
            document["acceptance"] = None if so_far is None else so_far.stats.acceptance
        now = time.monotonic()
        self._next_s = now + max(_SOONEST_S, (now - began) / _SHARE)
        return document

    def _rendered(self, *, ended: bool) -> dict[str, Any]:
        """The new text of each kind, and the blocks that have changed."""
        found: dict[str, Any] = {}
        for name, kept in (("thinking", self.thinking), ("text", self.text)):
            kept.add(self._new[name])
            found[name], self._new[name] = self._new[name], ""
            closed = ended or (name == "thinking" and bool(self.text.text or self._new["text"]))
            changed = kept.change(ended=closed) if found[name] or ended else None
            if changed is not None:
                found[f"{name}_html"] = [changed.start, *changed.blocks]
        return found
