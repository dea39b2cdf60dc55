"""`/v1/chat/completions` as the official openai client uses it, and the exact form of its streams."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pydantic
import pytest

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.params import SamplingParams
from tests.server.serving import SUM, WHO, Serving

GREEDY: dict[str, Any] = {"model": "mimo-tiny", "temperature": 0}


@pytest.fixture(scope="module")
def client(server: Serving) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def chunks_of(server: Serving, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[Any]:
    """The documents of a stream, which ends with [DONE]."""
    with server.client.stream("POST", server.url + path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.client("openai", "chat")
def test_a_whole_answer_is_the_models(client: Any, llm: LLM) -> None:
    (wanted,) = llm.chat(SUM, SamplingParams(temperature=0), use_tqdm=False)
    said = client.chat.completions.create(messages=SUM, **GREEDY)
    (choice,) = said.choices
    assert (choice.message.content, choice.message.role) == (wanted.outputs[0].text, "assistant")
    assert choice.message.reasoning_content == choice.message.reasoning == wanted.outputs[0].reasoning
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    n_prompt, n_said = len(wanted.prompt_token_ids), len(wanted.outputs[0].token_ids)
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (n_prompt, n_said)
    assert said.usage.total_tokens == n_prompt + n_said
    assert 0 < said.usage.prompt_tokens_details.cached_tokens < n_prompt
    thought = len(llm.get_tokenizer().encode(f"<think>{wanted.outputs[0].reasoning}</think>"))
    assert abs(said.usage.completion_tokens_details.reasoning_tokens - thought) <= 2
    assert said.timings["predicted_n"] == n_said and said.timings["draft_n"] > 0
    assert said.id.startswith("chatcmpl-") and said.object == "chat.completion" and said.model == "mimo-tiny"


def test_the_form_of_a_stream(server: Serving, client: Any) -> None:
    body = {**GREEDY, "messages": SUM}
    whole = client.chat.completions.create(**body).choices[0].message
    chunks = chunks_of(server, body | {"stream_options": {"include_usage": True}})
    first, *middle, last, usage = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert len({chunk["id"] for chunk in chunks}) == len({chunk["created"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    for chunk in [first, *middle]:
        (choice,) = chunk["choices"]
        assert choice["finish_reason"] is None and choice["index"] == 0 and chunk["usage"] is None
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert last["timings"]["acceptance"] > 0.5
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == last["timings"]["predicted_n"]
    deltas = [chunk["choices"][0]["delta"] for chunk in middle]
    assert all(len(delta) in (1, 2) for delta in deltas)
    assert "".join(delta.get("content", "") for delta in deltas) == whole.content
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == whole.reasoning_content
    kinds = ["content" in delta for delta in deltas]
    assert kinds == sorted(kinds), "the reasoning comes before the answer"
    plain = chunks_of(server, body)
    assert plain[-1]["choices"] and not any("usage" in chunk for chunk in plain), "usage comes only if asked for"


@pytest.mark.client("openai", "async", "streams")
def test_an_async_client_streams_many(server: Serving, client: Any) -> None:
    questions = [WHO, SUM, [{"role": "user", "content": "Tell me a story."}]]
    wanted = [client.chat.completions.create(messages=each, max_tokens=15, **GREEDY) for each in questions]

    async def ask(client: Any, messages: Any) -> str:
        stream = await client.chat.completions.create(messages=messages, max_tokens=15, stream=True, **GREEDY)
        deltas = [chunk.choices[0].delta async for chunk in stream]
        return "".join(delta.content or getattr(delta, "reasoning", "") for delta in deltas)

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60) as client:
            return await asyncio.gather(*(ask(client, each) for each in questions))

    messages = [each.choices[0].message for each in wanted]
    assert asyncio.run(ask_all()) == [getattr(each, "reasoning", "") + each.content for each in messages]


@pytest.mark.client("openai", "several answers")
def test_several_answers(client: Any) -> None:
    how: dict[str, Any] = {"model": "mimo-tiny", "messages": WHO, "n": 3, "temperature": 1.5, "top_p": 1.0}
    said = client.chat.completions.create(max_tokens=12, seed=5, logprobs=True, **how)
    tokens = [tuple(each.token for each in choice.logprobs.content) for choice in said.choices]
    assert len(set(tokens)) == 3 and [choice.index for choice in said.choices] == [0, 1, 2]
    assert said.usage.completion_tokens == sum(map(len, tokens))
    assert said.usage.prompt_tokens == client.chat.completions.create(max_tokens=1, **how).usage.prompt_tokens


@pytest.mark.client("openai", "stop texts", "reasoning effort")
def test_ends(client: Any) -> None:
    def ask(**how: Any) -> Any:
        return client.chat.completions.create(messages=SUM, **GREEDY, **how).choices[0]

    whole = ask().message.content
    stopped = ask(stop=["= 42", "nothing"])
    assert stopped.finish_reason == "stop" and stopped.message.content == whole.partition("= 42")[0]
    kept = ask(stop="= 42", extra_body={"include_stop_str_in_output": True})
    assert kept.message.content == whole.partition(".")[0]
    thinking = ask(max_completion_tokens=3)
    assert thinking.finish_reason == "length" and thinking.message.content == ""
    assert thinking.message.reasoning_content
    short = ask(reasoning_effort="none")
    assert not getattr(short.message, "reasoning_content", None) and short.message.content
    budget = ask(extra_body={"thinking_token_budget": 4})
    assert 0 < len(budget.message.reasoning_content) < 30 and budget.message.content


@pytest.mark.client("openai", "log-probabilities")
def test_logprobs(server: Serving, client: Any) -> None:
    how = {**GREEDY, "messages": SUM, "logprobs": True, "top_logprobs": 2, "max_tokens": 12}
    content = client.chat.completions.create(**how).choices[0].logprobs.content
    assert len(content) == 12
    for each in content:
        assert len(each.top_logprobs) == 2 and each.top_logprobs[0].logprob >= each.top_logprobs[1].logprob
        assert (each.token, each.logprob) == (each.top_logprobs[0].token, each.top_logprobs[0].logprob)
    assert "<think>" in b"".join(bytes(each.bytes) for each in content).decode()
    chunks = chunks_of(server, how)
    streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [each["token"] for each in streamed] == [each.token for each in content]
    assert [each["logprob"] for each in streamed] == pytest.approx([each.logprob for each in content], abs=0.05)


def test_drafts_are_the_requests_choice(client: Any) -> None:
    def ask(**extra: Any) -> Any:
        return client.chat.completions.create(messages=SUM, max_tokens=30, **GREEDY, extra_body=extra)

    plain, off, one, two = ask(), ask(mtp=False), ask(n_draft=1), ask(mtp=True, n_draft=2)
    assert off.timings["draft_n"] == 0 and off.timings["acceptance"] is None
    assert 0 < one.timings["draft_n"] < two.timings["draft_n"] == plain.timings["draft_n"]
    assert len({each.choices[0].message.content for each in (plain, off, one, two)}) == 1
    with pytest.raises(openai.BadRequestError, match="n_draft is 3, and the server drafts 2"):
        ask(n_draft=3)


class Sum(pydantic.BaseModel):
    a: int
    b: int
    is_even: bool


@pytest.mark.client("openai", "structured outputs (`parse`)", "grammar")
def test_structured_answers_after_thinking(client: Any) -> None:
    parsed = client.chat.completions.parse(messages=SUM, response_format=Sum, **GREEDY).choices[0]
    assert isinstance(parsed.message.parsed, Sum) and parsed.finish_reason == "stop"
    assert parsed.message.reasoning_content, "the form begins after the reasoning"
    said = client.chat.completions.create(
        messages=SUM, response_format={"type": "json_object"}, max_tokens=200, seed=1, model="mimo-tiny"
    )
    if said.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(said.choices[0].message.content), dict)
    choice = client.chat.completions.create(messages=SUM, extra_body={"grammar": 'root ::= "yes" | "no"'}, **GREEDY)
    assert choice.choices[0].message.content in ("yes", "no") and choice.choices[0].message.reasoning_content
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(
            messages=SUM,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
            **GREEDY,
        )


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rom \"x\" {"]}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city", "days"],
        },
    },
}  # fmt: skip
OTHER = {
    "type": "function",
    "function": {"name": "other", "parameters": {"type": "object", "additionalProperties": False}},
}


def is_weather(arguments: Any) -> bool:
    return arguments["city"] in ("Paris", 'Rom "x" {') and isinstance(arguments["days"], int)


@pytest.mark.client("openai", "tools and their results")
@pytest.mark.usefixtures("told_at_once")
def test_tools(server: Serving, client: Any) -> None:
    how: dict[str, Any] = {**GREEDY, "messages": SUM, "tools": [OTHER, WEATHER], "parallel_tool_calls": False}
    quick = how | {"reasoning_effort": "none"}
    named = {"type": "function", "function": {"name": "get_weather"}}
    choice = client.chat.completions.create(tool_choice=named, **quick).choices[0]
    (call,) = choice.message.tool_calls
    unbounded = client.chat.completions.create(tool_choice=named, **quick | {"parallel_tool_calls": True}).choices[0]
    assert len(unbounded.message.tool_calls) == 1, "as at OpenAI"
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.function.name == "get_weather" and call.type == "function" and call.id.startswith("call_")
    arguments = json.loads(call.function.arguments)
    assert is_weather(arguments)
    chunks = chunks_of(server, quick | {"tool_choice": named})
    pieces = [d["tool_calls"][0] for c in chunks if "tool_calls" in (d := c["choices"][0]["delta"])]
    assert pieces[0]["function"]["name"] == "get_weather" and pieces[0]["id"] and len(pieces) > 2
    assert not any("id" in piece or "name" in piece["function"] for piece in pieces[1:])
    assert is_weather(json.loads("".join(piece["function"]["arguments"] for piece in pieces)))
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    required = client.chat.completions.create(tool_choice="required", **quick).choices[0].message.tool_calls
    assert required[0].function.name in ("get_weather", "other")
    back = [
        *SUM, choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]  # fmt: skip
    final = client.chat.completions.create(**how | {"messages": back, "tool_choice": "none", "max_tokens": 5})
    assert final.usage.completion_tokens == 5


def test_a_message_is_gone_on_with(client: Any, llm: LLM) -> None:
    begun = [*SUM, {"role": "assistant", "content": "17 + 25 ="}]
    how: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    (wanted,) = llm.chat(begun, SamplingParams(temperature=0), False, **how)
    said = client.chat.completions.create(messages=begun, extra_body={"continue_final_message": True}, **GREEDY)
    assert said.choices[0].message.content == wanted.outputs[0].text != ""
