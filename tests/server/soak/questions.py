"""What the clients of a soak ask, and what of an answer must be the same however it was asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from tests.server.soak.wire import Reply

CHAT, COMPLETE, RESPOND, MESSAGE = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
_SAID: Final = (
    "What is 17 + 25?", "Who are you?", "Tell me a story.", "Count to ten.", "What is 3 * 4?", "Say it again, slowly.",
)  # fmt: skip
_FORM: Final = {
    "type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": False,
}  # fmt: skip
_TOOL: Final = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}


@dataclass(frozen=True, slots=True)
class Question:
    """A body for a path, greedy, so that its answer is always the same."""

    path: str
    body: dict[str, Any]


def questions() -> list[Question]:
    """All questions of a soak: every form of the API, short and long prompts, forms and tools."""
    found = []
    for number, text in enumerate(_SAID):
        n = 10 + 17 * number
        messages = [{"role": "user", "content": text}]
        story = [{"role": "system", "content": f"{text} " * (12 * number)}, *messages]
        found += [
            Question(CHAT, {"messages": messages, "max_tokens": n, "temperature": 0}),
            Question(CHAT, {"messages": story, "max_tokens": n, "temperature": 0, "thinking_token_budget": 5}),
            Question(COMPLETE, {"prompt": text, "max_tokens": n, "temperature": 0}),
            Question(RESPOND, {"input": text, "max_output_tokens": n, "temperature": 0}),
            Question(MESSAGE, {"messages": messages, "max_tokens": n, "temperature": 0}),
        ]
    last = [{"role": "user", "content": _SAID[0]}]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": _FORM}}
    tools = {"tools": [{"type": "function", "function": _TOOL}], "tool_choice": "required"}
    how = {"messages": last, "max_tokens": 120, "temperature": 0, "reasoning_effort": "none"}
    return [*found, Question(CHAT, {**how, "response_format": form}), Question(CHAT, {**how, **tools})]


def said(path: str, reply: Reply, *, streamed: bool) -> str:
    """The reasoning, text and calls of an answer. Raises KeyError, ValueError or AssertionError if it is not whole."""
    if streamed:
        return _streamed(path, reply.events)
    document = json.loads(reply.body)
    match path:
        case "/v1/chat/completions":
            return _of_message(document["choices"][0]["message"])
        case "/v1/completions":
            return str(document["choices"][0]["text"])
        case "/v1/responses":
            return _of_items(document["output"])
        case _:
            return "".join(block.get("text", "") for block in document["content"])


def _of_message(message: dict[str, Any]) -> str:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    spoken = "".join(f"{call['name']}{call['arguments']}" for call in calls)
    return f"{message.get('reasoning') or ''}|{message.get('content') or ''}|{spoken}"


def _of_items(items: list[dict[str, Any]]) -> str:
    return "|".join(part["text"] for item in items for part in item["content"])


def _streamed(path: str, events: list[dict[str, Any]]) -> str:
    assert "error" not in events[-1], events[-1]
    if path == RESPOND:
        assert events[-1]["type"] in ("response.completed", "response.incomplete")
        return _of_items(events[-1]["response"]["output"])
    if path == MESSAGE:
        assert events[-1]["type"] == "message_stop"
        return "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
    choices = [event["choices"][0] for event in events]
    assert choices[-1]["finish_reason"]
    if path == COMPLETE:
        return "".join(choice["text"] for choice in choices)
    deltas = [choice["delta"] for choice in choices]
    joined: dict[str, Any] = {
        name: "".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning", "content")
    }
    return _of_message(joined | {"tool_calls": _joined_calls(deltas)})


def _joined_calls(deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls whose pieces came in a stream, each at its index."""
    calls: dict[int, dict[str, str]] = {}
    for piece in (piece for delta in deltas for piece in delta.get("tool_calls", ())):
        call = calls.setdefault(piece["index"], {"name": "", "arguments": ""})
        for name in call:
            call[name] += piece["function"].get(name, "")
    return [{"function": call} for _, call in sorted(calls.items())]
