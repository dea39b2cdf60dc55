"""`/v1/responses` as the official openai client uses it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.params import SamplingParams
from tests.server.serving import SUM, Serving

HOW: dict[str, Any] = {"model": "mimo-tiny", "temperature": 0, "store": False}
QUESTION = SUM[0]["content"]
QUICK = HOW | {"reasoning": {"effort": "none"}}
ADD = {
    "type": "function",
    "name": "add",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    },
}  # fmt: skip

OTHER = {"type": "function", "name": "other"}


class Sum(pydantic.BaseModel):
    is_even: bool


@pytest.fixture(scope="module")
def client(server: Serving) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.mark.client("openai", "responses")
def test_a_response(client: Any, llm: LLM) -> None:
    (wanted,) = llm.chat(SUM, SamplingParams(temperature=0), use_tqdm=False)
    said = client.responses.create(input=QUESTION, **HOW)
    assert said.output_text == wanted.outputs[0].text and said.status == "completed"
    assert [item.type for item in said.output] == ["reasoning", "message"]
    assert said.output[0].content[0].text == wanted.outputs[0].reasoning
    assert said.usage.input_tokens == len(wanted.prompt_token_ids)
    assert said.usage.output_tokens == len(wanted.outputs[0].token_ids)
    assert said.usage.output_tokens_details.reasoning_tokens > 0
    cut = client.responses.create(input=[{"role": "user", "content": QUESTION}], max_output_tokens=2, **HOW)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    kind = client.responses.create(input=parts, instructions="Be kind.", max_output_tokens=1, **HOW)
    assert kind.usage.input_tokens > said.usage.input_tokens


@pytest.mark.client("openai", "response streams")
def test_a_stream(client: Any) -> None:
    whole = client.responses.create(input=QUESTION, **HOW)
    with client.responses.stream(input=QUESTION, **HOW) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text and final.usage.output_tokens == whole.usage.output_tokens
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    for kind in ("output_item.added", "output_item.done", "content_part.added", "content_part.done"):
        assert kinds.count(f"response.{kind}") == 2
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == whole.output[0].content[0].text


@pytest.mark.client("openai", "responses: `parse` and tools")
def test_forms_and_tools(client: Any) -> None:
    parsed = client.responses.parse(input=QUESTION, text_format=Sum, **QUICK)
    assert isinstance(parsed.output_parsed, Sum)
    how = QUICK | {"tools": [ADD], "tool_choice": {"type": "function", "name": "add"}, "parallel_tool_calls": False}
    (call,) = client.responses.create(input=QUESTION, **how).output
    assert (call.type, call.name) == ("function_call", "add") and call.arguments.replace(" ", "").startswith('{"a":')
    with client.responses.stream(input=QUESTION, **how) as stream:
        (streamed,) = stream.get_final_response().output
    assert streamed.name == call.name and isinstance(json.loads(streamed.arguments)["a"], int)
    back = [
        {"role": "user", "content": QUESTION}, call.to_dict(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "42"},
    ]  # fmt: skip
    assert client.responses.create(input=back, max_output_tokens=1, **QUICK).usage.output_tokens == 1


@pytest.mark.client("openai", "responses: log-probabilities")
@pytest.mark.usefixtures("told_at_once")
def test_log_probabilities(client: Any, llm: LLM) -> None:
    """Those of the text's tokens, without reasoning and end: whole, in the stream's pieces, and as a chat has them."""
    how = {"input": QUESTION, **HOW, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    (said,) = client.responses.create(**how).output[1].content
    assert "".join(each.token for each in said.logprobs) == said.text
    assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in said.logprobs)
    chat = client.chat.completions.create(model="mimo-tiny", messages=SUM, temperature=0, logprobs=True).choices[0]
    n = len(said.logprobs)
    of_text = [each for each in chat.logprobs.content if each.token != "<|im_end|>"][-n:]
    assert [each.token for each in said.logprobs] == [each.token for each in of_text]
    assert [each.logprob for each in said.logprobs] == pytest.approx([each.logprob for each in of_text], abs=0.05)
    with client.responses.stream(**how) as stream:
        events = list(stream)
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    streamed = [each.token for event in deltas for each in event.logprobs]
    assert len(deltas) > 2 and "".join(streamed) == said.text
    assert [each.token for each in done.logprobs] == streamed
    plain = client.responses.create(input=QUESTION, **HOW).output[1].content[0]
    assert plain.logprobs == []


@pytest.mark.client(
    "openai", "responses: `previous_response_id`", "responses: `retrieve` and `delete`", "responses: `input_items`"
)
def test_a_conversation_goes_on_by_its_id(client: Any, server: Serving) -> None:
    """What a client gets that sends only the new message is what it gets if it sends all of them."""
    how = {"model": "mimo-tiny", "temperature": 0}
    first = client.responses.create(input=QUESTION, instructions="Be kind.", **how)
    assert first.store is True
    second = client.responses.create(input="And 3 * 4?", previous_response_id=first.id, **how)
    whole = [*SUM, {"role": "assistant", "content": first.output_text}, {"role": "user", "content": "And 3 * 4?"}]
    wanted = client.responses.create(input=whole, **how)
    assert second.output_text == wanted.output_text and second.previous_response_id == first.id
    assert second.usage.input_tokens == wanted.usage.input_tokens, "instructions hold for one response"
    with client.responses.stream(input="Who are you?", previous_response_id=second.id, **how) as stream:
        third = stream.get_final_response()
    assert third.usage.input_tokens > second.usage.input_tokens
    assert client.responses.retrieve(third.id).output_text == third.output_text
    (item,) = client.responses.input_items.list(third.id).data
    assert item.content[0].text == "Who are you?" and item.role == "user"
    client.responses.delete(third.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(third.id)
    unknown = client.responses.create(input="x", max_output_tokens=1, **HOW)
    assert unknown.store is False
    with pytest.raises(openai.BadRequestError, match="was not stored, or is forgotten") as refused:
        client.responses.create(input="x", previous_response_id=unknown.id, **how)
    assert refused.value.code == "previous_response_not_found" and refused.value.param == "previous_response_id"


@pytest.mark.client("openai", "responses: allowed tools")
def test_a_call_and_its_output_by_the_id(client: Any) -> None:
    how = QUICK | {"tools": [ADD, OTHER], "store": True}
    only = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}
    first = client.responses.create(input=QUESTION, tool_choice=only, parallel_tool_calls=False, **how)
    (call,) = first.output
    assert call.name == "add", "the one that is allowed"
    output = [{"type": "function_call_output", "call_id": call.call_id, "output": "42"}]
    second = client.responses.create(input=output, previous_response_id=first.id, max_output_tokens=1, **how)
    back = [{"role": "user", "content": QUESTION}, call.to_dict(), *output]
    assert (
        second.usage.input_tokens == client.responses.create(input=back, max_output_tokens=1, **how).usage.input_tokens
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": []},
        {"input": [{"type": "message", "content": "x"}]},
        {"input": [{"type": "web_search_call"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        {"input": "x", "tools": [{"type": "web_search"}]},
        {"input": "x", "previous_response_id": "resp_1"},
        {"input": "x", "conversation": "conv_1"},
        {"input": "x", "top_logprobs": 21},
        {"input": "x", "tools": [ADD], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [OTHER]}},
        {"input": "x", "background": True},
        {"input": "x", "truncation": "auto"},
        {"input": "x", "text": {"format": {"type": "json_schema", "name": "x"}}},
        {"input": "x", "unknown": 1},
        {"input": "x " * 3000, "stream": True},
    ],
)
def test_errors(server: Serving, body: Any) -> None:
    refused = server.post("/v1/responses", body)
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
