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


class Sum(pydantic.BaseModel):
    is_even: bool


@pytest.fixture(scope="module")
def client(server: Serving) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


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
