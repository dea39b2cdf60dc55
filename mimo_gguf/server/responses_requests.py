"""The body of OpenAI's `/v1/responses`, and what it is as a conversation of ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mimo_gguf.core.errors import UsageError
from mimo_gguf.server.requests import ChatBody, Count, Effort, Loose, ModelBody, StreamOptions

_TEXTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})


class Part(Loose):
    """A part of an item."""

    type: str
    text: str | None = None


Parts = str | Annotated[list[Part], Field(max_length=10_000)]


class Item(Loose):
    """An item of the input: a message, a call and its output, or earlier reasoning."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts | None = None
    name: str | None = None
    arguments: str | None = None
    call_id: str | None = None
    output: Parts | None = None


class TextFormat(Loose):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextConfig(Loose):
    """How the answer is written."""

    format: TextFormat | None = None


class Reasoning(Loose):
    """How long is thought."""

    effort: Effort | None = None


class ResponseTool(Loose):
    """A function that the model may call; OpenAI's own tools are refused."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(Loose):
    """The one function to call."""

    type: Literal["function"]
    name: str


class ResponsesBody(ModelBody):
    """The body of `/v1/responses`. Nothing is stored: each request brings its whole conversation."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=10_000)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    previous_response_id: None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    mtp: bool | None = None
    n_draft: Count | None = None
    store: Any = None
    include: Any = None
    metadata: Any = None
    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


def response_as_chat(body: ResponsesBody) -> ChatBody:
    """The same as a body of `/v1/chat/completions`.

    Raises:
        UsageError: an item or a part is of a kind that the model cannot read.
    """
    first = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    items = [Item(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    names = ("temperature", "top_p", "parallel_tool_calls", "mtp", "n_draft")
    fields: dict[str, Any] = {name: getattr(body, name) for name in names}
    fields |= {
        "messages": [*first, *_messages(items)],
        "max_tokens": body.max_output_tokens,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
        "response_format": _form(body.text),
        "tools": None if not body.tools else [_tool(tool) for tool in body.tools],
        "tool_choice": body.tool_choice,
    }
    if isinstance(body.tool_choice, NamedChoice):
        fields["tool_choice"] = {"type": "function", "function": {"name": body.tool_choice.name}}
    return ChatBody.model_validate(fields)


def _tool(tool: ResponseTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _form(text: TextConfig | None) -> dict[str, Any] | None:
    if text is None or text.format is None:
        return None
    return {"type": text.format.type, "schema": text.format.schema_}


def _messages(items: list[Item]) -> list[dict[str, Any]]:
    """The messages that items are: calls belong to the assistant's message before them."""
    messages: list[dict[str, Any]] = []
    for item in items:
        match item.type:
            case "message":
                if item.role is None:
                    raise UsageError("a message is without a role", hint='"role": "user"')
                messages.append({"role": item.role, "content": _text(item.content)})
            case "function_call":
                call = {"id": item.call_id, "function": {"name": item.name or "", "arguments": item.arguments or "{}"}}
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None})
                messages[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            case "reasoning":
                pass  # the template leaves out earlier reasoning
            case _:
                raise UsageError(f"an item of the kind {item.type!r:.40}", hint="messages, function calls and outputs")
    return messages


def _text(parts: Parts | None) -> str:
    if parts is None or isinstance(parts, str):
        return parts or ""
    for part in parts:
        if part.type not in _TEXTS or part.text is None:
            raise UsageError(f"a part of an item is not text: {part.type!r:.40}", hint="MiMo-7B reads text only")
    return "\n".join(part.text or "" for part in parts)
