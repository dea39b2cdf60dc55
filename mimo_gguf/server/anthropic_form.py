"""Answers in the form of Anthropic's `/v1/messages`: whole, and as events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from mimo_gguf.core.unguessable import unguessable_name
from mimo_gguf.server.answers import Answers
from mimo_gguf.server.blocks import Block, Blocks, Change, changes
from mimo_gguf.server.failures import Failure

_ERRORS: Final = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
_DELTAS: Final = {"text": "text", "reasoning": "thinking"}


def failure_json(failure: Failure) -> dict[str, Any]:
    """An error in Anthropic's form."""
    kind = _ERRORS.get(failure.status, "api_error" if failure.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": failure.message}}


async def whole_message(answers: Answers, model: str, *, shows_reasoning: bool) -> dict[str, Any]:
    """The document of an answer that is not streamed. Raises as `Answers.deltas`."""
    blocks = Blocks(shows_reasoning)
    async with aclosing(changes(answers, blocks)) as found:
        async for _ in found:
            pass
    content = [_content(block) for block in blocks.all]
    return _head(model) | {"content": content, **_end(answers), "usage": _usage(answers)}


async def message_events(
    answers: Answers, model: str, *, shows_reasoning: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a streamed answer. Raises as `Answers.deltas`."""
    blocks = Blocks(shows_reasoning)
    async with aclosing(changes(answers, blocks)) as found:
        async for change in found:
            if change is not None:
                for event in _events(change):
                    yield event
                continue
            head = _head(model) | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(answers)}
            yield {"type": "message_start", "message": head}
            yield {"type": "ping"}
    yield {"type": "message_delta", "delta": _end(answers), "usage": _usage(answers)}
    yield {"type": "message_stop"}


def _head(model: str) -> dict[str, Any]:
    return {"id": unguessable_name("msg_"), "type": "message", "role": "assistant", "model": model}


def _events(change: Change) -> list[dict[str, Any]]:
    what, block, new, _ = change
    at = {"index": block.number}
    if what == "open":
        empty = {
            "text": {"type": "text", "text": ""},
            "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
        }
        start = empty.get(block.kind, {"type": "tool_use", "id": block.id, "name": block.name, "input": {}})
        return [{"type": "content_block_start", **at, "content_block": start}]
    if what == "close":
        return [{"type": "content_block_stop", **at}]
    if block.kind == "call":
        return [{"type": "content_block_delta", **at, "delta": {"type": "input_json_delta", "partial_json": new}}]
    name = _DELTAS[block.kind]
    return [{"type": "content_block_delta", **at, "delta": {"type": f"{name}_delta", name: new}}]


def _content(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": block.text}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": _arguments(block.text)}


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call as an object; an empty one if it was cut off."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _end(answers: Answers) -> dict[str, Any]:
    """Why the answer ended, in Anthropic's words."""
    (growing,) = answers.all
    stopped = None if growing.answer is None else growing.answer.stop_reason
    if growing.finish == "stop" and isinstance(stopped, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stopped}
    words = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
    return {"stop_reason": words.get(growing.finish or "", "end_turn"), "stop_sequence": None}


def _usage(answers: Answers) -> dict[str, Any]:
    """The usage so far: tokens of the prompt that were cached are counted apart from the others."""
    usage = answers.usage()
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage["completion_tokens"],
    }
