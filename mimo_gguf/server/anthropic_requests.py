"""The bodies of Anthropic's `/v1/messages`, and what they are as a conversation of ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mimo_gguf.core.errors import UsageError
from mimo_gguf.server.requests import Body, ChatBody, Count, Effort, Loose, ModelBody, Texts

_TEXT_ONLY = "MiMo-7B reads text only"


class ContentBlock(Loose):
    """A block of a message."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[ContentBlock] | None = None


Blocks = str | Annotated[list[ContentBlock], Field(max_length=10_000)]


class AnthropicMessage(Loose):
    """A message."""

    role: Literal["user", "assistant", "system"]
    content: Blocks


class AnthropicTool(Loose):
    """A tool of the client's own; Anthropic's own kinds are refused."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]


class AnthropicChoice(Loose):
    """Which tool is called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Loose):
    """Whether reasoning is shown, and how long it may be."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None


class OutputFormat(Loose):
    """The form of an answer."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """The form of an answer, and how long it is thought about."""

    effort: Effort | None = None
    format: OutputFormat | None = None


class CountBody(ModelBody):
    """The body of `/v1/messages/count_tokens`."""

    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=10_000)]
    system: Blocks | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=128)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = None
    diagnostics: Any = None
    inference_geo: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None


class MessagesBody(CountBody):
    """The body of `/v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1, le=1 << 30)]
    stop_sequences: Texts | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = None
    metadata: Any = None
    service_tier: Any = None
    mtp: bool | None = None
    n_draft: Count | None = None

    @property
    def shows_thinking(self) -> bool:
        """Whether the client asked for blocks of thinking; one that did not may not know them."""
        return self.thinking is not None and self.thinking.type != "disabled"


def as_chat(body: CountBody) -> ChatBody:
    """The same as a body of `/v1/chat/completions`.

    Raises:
        UsageError: a block is not text, or a tool is to be called and has no name.
    """
    system = [] if body.system is None else [{"role": "system", "content": _text(body.system)}]
    messages = [plain for message in body.messages for plain in _messages(message)]
    fields: dict[str, Any] = {"messages": [*system, *messages], "tools": _tools(body), **_choice(body.tool_choice)}
    if isinstance(body, MessagesBody):
        names = ("max_tokens", "temperature", "top_p", "top_k", "mtp", "n_draft")
        fields |= {name: getattr(body, name) for name in names} | {"stop": body.stop_sequences}
        thinking = body.thinking
        if thinking is not None:
            fields["thinking_token_budget"] = 0 if thinking.type == "disabled" else thinking.budget_tokens
        fields |= _output(body.output_config or OutputConfig())
    return ChatBody.model_validate(fields)


def _tools(body: CountBody) -> list[dict[str, Any]] | None:
    if not body.tools:
        return None
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
        }
        for tool in body.tools
    ]


def _choice(given: AnthropicChoice | None) -> dict[str, Any]:
    if given is None:
        return {}
    if given.type == "tool" and not given.name:
        raise UsageError("tool_choice is without a name", hint='{"type": "tool", "name": "..."}')
    choice: Any = {"any": "required", "tool": {"type": "function", "function": {"name": given.name}}}
    found = {"tool_choice": choice.get(given.type, given.type)}
    return found | ({"parallel_tool_calls": False} if given.disable_parallel_tool_use else {})


def _output(given: OutputConfig) -> dict[str, Any]:
    form = None if given.format is None else {"type": "json_schema", "schema": given.format.schema_}
    return {"reasoning_effort": given.effort, "response_format": form}


def _messages(message: AnthropicMessage) -> list[dict[str, Any]]:
    """The messages that one of Anthropic's is: results of tools are messages of their own, before the text."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content or "")}
        for block in message.content
        if block.type == "tool_result"
    ]
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name or "", "arguments": block.input or {}}}
        for block in message.content
        if block.type == "tool_use"
    ]
    thoughts = "".join(block.thinking or "" for block in message.content if block.type == "thinking")
    others = {"tool_result", "tool_use", "thinking", "redacted_thinking"}
    texts = [block for block in message.content if block.type not in others]
    if not texts and results:
        return results
    spoken: dict[str, Any] = {"role": message.role, "content": _text(texts)}
    spoken |= {"tool_calls": calls} if calls else {}
    return [*results, spoken | ({"reasoning_content": thoughts} if thoughts else {})]


def _text(blocks: Blocks) -> str:
    if isinstance(blocks, str):
        return blocks
    for block in blocks:
        if block.type != "text" or block.text is None:
            raise UsageError(f"a block of a message is not text: {block.type!r:.40}", hint=_TEXT_ONLY)
    return "\n".join(block.text or "" for block in blocks)
