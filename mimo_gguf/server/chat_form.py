"""Answers in the form of `/v1/chat/completions`: whole, and in chunks."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from mimo_gguf.core.unguessable import unguessable_name
from mimo_gguf.core.version import __version__
from mimo_gguf.engine.logprobs import Scores
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.server.answers import Answers, Delta, Growing
from mimo_gguf.server.token_scores import chat_scores
from mimo_gguf.server.tool_calls import Call, CallPiece


@dataclass(frozen=True, slots=True)
class Head:
    """What every document of one answer repeats.

    Attributes:
        prefix: how its id begins.
        model: the model's name.
    """

    prefix: str
    model: str
    id: str = field(default_factory=unguessable_name)
    created: int = field(default_factory=lambda: int(time.time()))

    def document(self, kind: str) -> dict[str, Any]:
        """The beginning of a document of the kind `object`."""
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"mimo-gguf-{__version__}",
        }


async def read_whole(answers: Answers) -> None:
    """Reads all answers to their end. Raises as `Answers.deltas`."""
    async with aclosing(answers.deltas()) as deltas:
        async for _ in deltas:
            pass


async def whole_chat(answers: Answers, head: Head, vocabulary: Vocabulary) -> dict[str, Any]:
    """The document of a chat that is not streamed. Raises as `Answers.deltas`."""
    await read_whole(answers)
    return head.document("chat.completion") | {
        "choices": [_choice(growing, answers.job.n_top, vocabulary) for growing in answers.all],
        "usage": answers.usage(),
        "timings": answers.timings(),
    }


async def chat_chunks(
    answers: Answers, head: Head, vocabulary: Vocabulary, *, with_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a chat: the role, what comes, the reason of the end, and the usage if it is asked for.

    Raises as `Answers.deltas`.
    """
    n_top = answers.job.n_top

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, scores: Sequence[Scores] = ()) -> Any:
        logprobs = chat_scores(scores, n_top or 0, vocabulary) if scores else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if with_usage else {}
        return head.document("chat.completion.chunk") | {"choices": [choice]} | usage

    async with aclosing(answers.deltas()) as deltas:
        begun: set[int] = set()
        async for delta in deltas:
            if delta.index not in begun:
                begun.add(delta.index)
                yield chunk(delta.index, {"role": "assistant", "content": None})
            for piece in _pieces(delta):
                yield chunk(delta.index, piece, None, delta.scores)
                delta = Delta(delta.index, finish=delta.finish)  # the scores belong to the first piece
            if delta.scores:
                yield chunk(delta.index, {}, None, delta.scores)
            if delta.finish is not None:
                last = len(answers.finished) == len(answers.all)
                yield chunk(delta.index, {}, delta.finish) | ({"timings": answers.timings()} if last else {})
    if with_usage:
        yield head.document("chat.completion.chunk") | {"choices": [], "usage": answers.usage()}


def _pieces(delta: Delta) -> list[dict[str, Any]]:
    """The `delta` of each chunk that a delta of ours becomes."""
    found: list[dict[str, Any]] = []
    if delta.reasoning:
        found.append({"reasoning_content": delta.reasoning, "reasoning": delta.reasoning})
    if delta.text:
        found.append({"content": delta.text})
    found += [{"tool_calls": [_call_piece(piece)]} for piece in delta.calls]
    return found


def _call_piece(piece: CallPiece) -> dict[str, Any]:
    if piece.name is None:
        return {"index": piece.index, "function": {"arguments": piece.arguments}}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"index": piece.index, "id": piece.id, "type": "function", "function": function}


def _choice(growing: Growing, n_top: int | None, vocabulary: Vocabulary) -> dict[str, Any]:
    calls: list[Call] = [] if growing.tools is None else growing.tools.calls
    message: dict[str, Any] = {"role": "assistant", "content": growing.text or (None if calls else "")}
    message["refusal"] = None
    if growing.reasoning:
        message |= {"reasoning_content": growing.reasoning, "reasoning": growing.reasoning}
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return {
        "index": growing.index,
        "message": message,
        "logprobs": None if n_top is None else chat_scores(growing.scores, n_top, vocabulary),
        "finish_reason": growing.finish,
    }
