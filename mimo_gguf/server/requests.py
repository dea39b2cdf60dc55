"""The bodies of requests in OpenAI's form, as pydantic models, with llama.cpp's and vLLM's names for what OpenAI lacks.

A field that does not exist is refused, because ignoring it would give another answer than the client expects. `IGNORED`
are those that change nothing here: they are about OpenAI's accounts and machines.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

# Accepted without an effect, in every body.
IGNORED: Final = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "verbosity", "modalities", "cache_prompt", "cache_salt", "request_id", "priority", "prediction",
    "prompt_cache_options",
)  # fmt: skip
# Fields of OpenAI's and Anthropic's bodies that are refused, and what to do instead.
REFUSED: Final = {
    "access_programs": "leave it out: these are programs of OpenAI's",
    "audio": "leave it out: MiMo-7B reads and writes text only",
    "background_options": "leave it out: nothing runs in the background",
    "container": "leave it out: no program is run here",
    "context_management": "leave it out: a prompt beyond the window is an error here",
    "conversation": "give previous_response_id, or the whole conversation in input",
    "function_call": "give tool_choice",
    "functions": "give tools",
    "image": "leave it out: MiMo-7B reads and writes text only",
    "moderation": "leave it out: nothing is moderated here",
    "prompt": "give messages or input: templates of prompts are stored at OpenAI's",
    "web_search_options": "leave it out: there is no search here",
}

Count = Annotated[int, Field(ge=0, le=1 << 30)]
Token = Annotated[int, Field(ge=0, le=1 << 31)]
Short = Annotated[str, Field(max_length=1024)]
Texts = Annotated[list[Short], Field(max_length=64)]
Tokens = Annotated[list[Token], Field(max_length=1 << 20)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Body(BaseModel):
    """What all bodies have in common: exact types, and no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelBody(Body):
    """The body of a request to one of the models; without a name, to the first."""

    model: str | None = None


class Loose(BaseModel):
    """A part of a body whose further fields are left as they are: clients send back whole messages of ours."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class StreamOptions(Loose):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None


class JsonSchema(Loose):
    """The form of an answer, as OpenAI wraps it."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's `response_format`, and llama.cpp's, which has the schema beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class FunctionCall(Loose):
    """A call in an earlier message: the function's name, and its arguments as a JSON text."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Loose):
    """A tool's call in an earlier message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Loose):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[str | dict[str, Any]], Field(max_length=10_000)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Function(Loose):
    """A function that the model may call; `parameters` is a JSON schema of an object."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Loose):
    """A tool, of which OpenAI has one kind that we can offer."""

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Loose):
    """The name of a function."""

    name: str


class NamedTool(Loose):
    """A `tool_choice` that names the one function to call."""

    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedSet(Loose):
    """The tools that may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128)]


class AllowedTools(Loose):
    """A `tool_choice` that leaves some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedSet


class Drawing(ModelBody):
    """How tokens are drawn and what ends an answer: the same fields for chat and completions."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Short | Texts | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=4096)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    bad_words: Texts | None = None
    skip_special_tokens: bool | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=4096)] | None = None
    response_format: ResponseFormat | None = None
    grammar: Annotated[str, Field(max_length=1 << 20)] | None = None
    thinking_token_budget: Count | None = None
    mtp: bool | None = None
    n_draft: Count | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    verbosity: Any = None
    modalities: Any = None
    cache_prompt: Any = None
    cache_salt: Any = None
    request_id: Any = None
    priority: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None


class Conversation(BaseModel):
    """What a prompt is made of."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class ChatBody(Drawing, Conversation):
    """The body of `/v1/chat/completions`."""

    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: Effort | None = None


class CompletionBody(Drawing):
    """The body of `/v1/completions`."""

    prompt: str | Tokens | Annotated[list[str | Tokens], Field(min_length=1, max_length=1024)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None
    best_of: int | None = None


class TemplateBody(Conversation, ModelBody):
    """The body of `/apply-template`."""


class TokenizeBody(ModelBody):
    """The body of `/tokenize`: llama-server's `content`, or vLLM's `prompt` or `messages`."""

    content: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(max_length=10_000)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    @property
    def as_template(self) -> dict[str, Any]:
        """The fields that `TemplateBody` has, too."""
        names = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
        return {name: getattr(self, name) for name in names}


class DetokenizeBody(ModelBody):
    """The body of `/detokenize`."""

    tokens: Tokens
