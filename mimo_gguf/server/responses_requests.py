"""The body of OpenAI's `/v1/responses`, and what it is as a conversation of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.unguessable import unguessable_name
from mimo_gguf.server.blocks import Blocks
from mimo_gguf.server.requests import ChatBody, Count, Effort, Loose, ModelBody, StreamOptions

SCORES: Final = "message.output_text.logprobs"  # the word of `include` that asks for log-probabilities
_TEXTS: Final = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})


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


class AllowedChoice(Loose):
    """The functions that may be called, and whether one must be."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=128)]


class ResponsesBody(ModelBody):
    """The body of `/v1/responses`."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=10_000)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    previous_response_id: str | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    mtp: bool | None = None
    n_draft: Count | None = None
    store: bool | None = None
    include: Annotated[list[str], Field(max_length=64)] | None = None
    max_tool_calls: Any = None
    metadata: Any = None
    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None

    @property
    def wants_scores(self) -> bool:
        """Whether the client asks for log-probabilities."""
        return SCORES in (self.include or ()) or self.top_logprobs is not None

    @property
    def items(self) -> list[Item]:
        """The input as items."""
        return [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input


def response_as_chat(
    body: ResponsesBody, before: tuple[dict[str, Any], ...]
) -> tuple[tuple[dict[str, Any], ...], ChatBody]:
    """The conversation without instructions, and the same as a body of `/v1/chat/completions`.

    Args:
        before: the messages up to the end of an earlier response.

    Raises:
        UsageError: an item or a part is of a kind that the model cannot read.
    """
    first = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    messages = (*before, *_messages(body.items))
    names = ("temperature", "top_p", "parallel_tool_calls", "mtp", "n_draft")
    fields: dict[str, Any] = {name: getattr(body, name) for name in names}
    fields |= {
        "messages": [*first, *messages],
        "max_tokens": body.max_output_tokens,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
        "response_format": _form(body.text),
        "tools": None if not body.tools else [_tool(tool) for tool in body.tools],
        "tool_choice": _choice(body.tool_choice),
        "logprobs": body.wants_scores,
        "top_logprobs": body.top_logprobs,
    }
    return messages, ChatBody.model_validate(fields)


def input_items(body: ResponsesBody) -> tuple[dict[str, Any], ...]:
    """The input as it is listed later."""
    found = []
    for item in body.items:
        shown = item.model_dump(exclude_none=True)
        if item.type == "message" and isinstance(item.content, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            shown["content"] = [{"type": kind, "text": item.content}]
        found.append({"id": unguessable_name("item_"), "status": "completed", **shown})
    return tuple(found)


def answer_messages(blocks: Blocks) -> list[dict[str, Any]]:
    """An answer as a message of the conversation; none if there is nothing but reasoning."""
    text = "".join(block.text for block in blocks.all if block.kind == "text")
    calls = [
        {"id": block.id, "function": {"name": block.name, "arguments": block.text}}
        for block in blocks.all
        if block.kind == "call"
    ]
    if not text and not calls:
        return []
    return [{"role": "assistant", "content": text or None} | ({"tool_calls": calls} if calls else {})]


def _choice(given: Any) -> Any:
    """A choice of tools in the form of `/v1/chat/completions`."""
    match given:
        case NamedChoice():
            return {"type": "function", "function": {"name": given.name}}
        case AllowedChoice():
            allowed = [_choice(each) for each in given.tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": given.mode, "tools": allowed}}
        case _:
            return given


def _tool(tool: ResponseTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _form(text: TextConfig | None) -> dict[str, Any] | None:
    if text is None or text.format is None:
        return None
    return {"type": text.format.type, "schema": text.format.schema_}


def _messages(items: Sequence[Item]) -> list[dict[str, Any]]:
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
