"""Turns the body of a request into requests for the scheduler: the one place that does so, for calls and batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import MAX_SEED
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.params import SamplingParams, StructuredOutputsParams
from mimo_gguf.runtime.requests import Asked
from mimo_gguf.runtime.scheduler import Request
from mimo_gguf.server.requests import ChatBody, CompletionBody, Conversation, Drawing, Message, ResponseFormat
from mimo_gguf.server.tool_choice import ToolRule, tool_rule

# reasoning_effort -> reasoning tokens after which the answer is asked for; None sets no limit.
EFFORTS: Final[dict[str, int | None]] = {
    "none": 0, "minimal": 256, "low": 1024, "medium": 8192, "high": None, "xhigh": None, "max": None,
}  # fmt: skip
_SAME_NAME: Final = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop",
    "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "min_tokens", "bad_words", "skip_special_tokens",
    "logit_bias", "thinking_token_budget",
)  # fmt: skip
_DEFAULT_LENGTH: Final = 16  # OpenAI's for completions


@dataclass(frozen=True, slots=True)
class Job:
    """A request as the scheduler answers it.

    Attributes:
        asked: one for each prompt, with one request for each of its `n` answers.
        tools: the rule for calls of tools; None without tools.
        echo: whether each answer begins with its prompt.
        n_top: number of likeliest tokens whose scores are shown at each place; None shows no scores.
    """

    asked: tuple[Asked, ...]
    tools: ToolRule | None = None
    echo: bool = False
    n_top: int | None = None

    @property
    def requests(self) -> list[Request]:
        """All requests, prompt by prompt."""
        return [request for asked in self.asked for request in asked.requests]


def chat_job(body: ChatBody, llm: LLM) -> Job:
    """The job of `/v1/chat/completions`.

    Raises:
        UsageError: a field is out of range, the template refuses the conversation or has no tools, the form of the
            answer cannot be compiled, or more drafts are wished for than the server makes.
    """
    tools = tool_rule(body, llm.model.template.source)
    prompt = _render(body, tools, llm)
    if body.top_logprobs is not None and not body.logprobs:
        raise UsageError("top_logprobs is without logprobs", hint='"logprobs": true')
    n_top = (body.top_logprobs or 0) if body.logprobs else None
    params = _params(body, _longest(body), grammar=None if tools is None else tools.grammar)
    params.logprobs = n_top
    if body.reasoning_effort is not None and params.thinking_token_budget is None:
        params.thinking_token_budget = EFFORTS[body.reasoning_effort]
    asked = llm.ask(prompt, params, split_reasoning=True)
    return Job((_with_drafts(asked, body, llm),), tools, n_top=n_top)


def chat_prompt(body: Conversation, llm: LLM) -> str:
    """The prompt of a conversation as text. Raises UsageError as `chat_job`."""
    return _render(body, tool_rule(body, llm.model.template.source), llm)


def _render(body: Conversation, tools: ToolRule | None, llm: LLM) -> str:
    continues = bool(body.continue_final_message)
    return llm.render(
        [as_message(message) for message in body.messages],
        add_generation_prompt=not continues and body.add_generation_prompt is not False,
        continue_final_message=continues,
        tools=None if tools is None else tools.shown,
        chat_template_kwargs=body.chat_template_kwargs,
    )


def completion_job(body: CompletionBody, llm: LLM) -> Job:
    """The job of `/v1/completions`. Raises UsageError as `chat_job`."""
    if body.suffix:
        raise UsageError("suffix is given", hint="MiMo-7B was not trained to fill in the middle")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise UsageError("best_of is not n", hint="draw several answers with n, and choose among them")
    longest = _DEFAULT_LENGTH if body.max_tokens is None else body.max_tokens
    params = _params(body, longest, grammar=None)
    params.logprobs = body.logprobs
    params.prompt_logprobs = body.logprobs if body.echo else None
    asked = [llm.ask(prompt, params, split_reasoning=False) for prompt in _prompts(body.prompt)]
    return Job(tuple(_with_drafts(each, body, llm) for each in asked), echo=bool(body.echo), n_top=body.logprobs)


def as_message(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it: content is text, arguments are objects, a developer is the system."""
    reasoning = message.reasoning_content or message.reasoning
    found: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": "" if message.content is None else message.content,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": reasoning,
    }
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return {name: value for name, value in found.items() if value is not None}


def _arguments(given: str | Mapping[str, Any]) -> Any:
    """The arguments of a call as an object, because templates write them as JSON; what is not JSON stays a text."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return given


def _longest(body: ChatBody) -> int | None:
    """The longest answer that is wished for: OpenAI's new name for it before the old one."""
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _params(body: Drawing, longest: int | None, *, grammar: str | None) -> SamplingParams:
    """The parameters of the scheduler's requests.

    Args:
        grammar: the form that the choice of a tool prescribes.
    """
    given = {name: getattr(body, name) for name in _SAME_NAME}
    given = {name: value for name, value in given.items() if value is not None}
    seed = body.seed if body.seed is None or body.seed < 0 else body.seed % (MAX_SEED + 1)
    forms = [form for form in (_form(body.response_format), body.grammar, grammar) if form is not None]
    if len(forms) > 1:
        raise UsageError(
            "response_format, grammar and a required tool prescribe the answer's form", hint="give one of them"
        )
    form = StructuredOutputsParams(grammar=forms[0]) if forms and isinstance(forms[0], str) else None
    if forms and not isinstance(forms[0], str):
        form = forms[0]
    return SamplingParams(
        n=body.n or 1,
        max_tokens=longest,
        seed=None if seed is not None and seed < 0 else seed,
        structured_outputs=form,
        **given,
    )


def _form(given: ResponseFormat | None) -> StructuredOutputsParams | None:
    """The form that `response_format` prescribes; None for free text."""
    if given is None or given.type == "text":
        return None
    wrapped = None if given.json_schema is None else given.json_schema.schema_
    schema = given.schema_ if wrapped is None else wrapped
    if given.type == "json_schema":
        if schema is None:
            raise UsageError("response_format is without a schema", hint='"json_schema": {"schema": {...}}')
        return StructuredOutputsParams(json=schema)
    return StructuredOutputsParams(json_object=True) if schema is None else StructuredOutputsParams(json=schema)


def _with_drafts(asked: Asked, body: Drawing, llm: LLM) -> Asked:
    """The same requests, with the number of drafts that the body wishes for."""
    most = llm.model.session.options.n_draft if llm.model.has_mtp else 0
    wanted = 0 if body.mtp is False else body.n_draft
    if body.mtp and not most:
        raise UsageError("mtp is true, and the server drafts nothing", hint="start it with --mtp, or leave mtp out")
    if body.mtp and body.n_draft == 0:
        raise UsageError("mtp is true, and n_draft is 0", hint="leave one out")
    if wanted is not None and wanted > most:
        raise UsageError(f"n_draft is {wanted}, and the server drafts {most}", hint="start it with --draft")
    if wanted is None or not most:
        return asked
    return replace(asked, requests=tuple(replace(request, n_draft=wanted) for request in asked.requests))


def _prompts(given: Any) -> Sequence[str | list[int]]:
    """The prompts of a completion: one text, one list of tokens, or a list of these."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        return [given]
    return list(given) or [""]
