"""`/v1/messages` as the official anthropic client uses it."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.params import SamplingParams
from mimo_gguf.server.settings import digest
from tests.server.serving import SUM, Serving, serving

HOW: dict[str, Any] = {"model": "mimo-tiny", "max_tokens": 200, "extra_body": {"temperature": 0}}
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def client(server: Serving) -> Any:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60)


@pytest.mark.client("anthropic", "messages", "thinking")
def test_a_message(client: Any, llm: LLM) -> None:
    (wanted,) = llm.chat(SUM, SamplingParams(temperature=0), use_tqdm=False)
    said = client.messages.create(messages=SUM, **HOW)
    assert [block.type for block in said.content] == ["text"], "who did not ask for thinking gets none"
    assert said.content[0].text == wanted.outputs[0].text
    assert (said.stop_reason, said.stop_sequence, said.role, said.type) == ("end_turn", None, "assistant", "message")
    usage = said.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(wanted.prompt_token_ids)
    assert usage.output_tokens == len(wanted.outputs[0].token_ids)
    thought = client.messages.create(messages=SUM, thinking={"type": "enabled", "budget_tokens": 1024}, **HOW)
    assert [block.type for block in thought.content] == ["thinking", "text"]
    assert thought.content[0].thinking == wanted.outputs[0].reasoning
    quick = client.messages.create(messages=SUM, thinking={"type": "disabled"}, **HOW)
    assert quick.usage.output_tokens < usage.output_tokens


@pytest.mark.client("anthropic", "stop sequences")
def test_ends(client: Any) -> None:
    cut = client.messages.create(messages=SUM, **HOW | {"max_tokens": 2})
    assert cut.stop_reason == "max_tokens"
    stopped = client.messages.create(messages=SUM, stop_sequences=["= 42"], **HOW)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "= 42")


@pytest.mark.client("anthropic", "streams")
def test_a_stream(client: Any) -> None:
    how = HOW | {"messages": SUM, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = client.messages.create(**how)
    with client.messages.stream(**how) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == whole.usage.output_tokens
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    with client.messages.stream(messages=SUM, **HOW) as stream:
        assert "".join(stream.text_stream) == whole.content[1].text


@pytest.mark.client("anthropic", "tools and their results", "`count_tokens`")
def test_tools(client: Any) -> None:
    how = HOW | {"messages": SUM, "tools": [WEATHER], "thinking": {"type": "disabled"}}
    choice = {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}
    said = client.messages.create(tool_choice=choice, **how)
    (call,) = said.content
    assert (call.type, call.name, said.stop_reason) == ("tool_use", "get_weather", "tool_use")
    assert call.input["city"] in ("Paris", "Rome") and isinstance(call.input["days"], int)
    with client.messages.stream(tool_choice=choice, **how) as stream:
        assert set(stream.get_final_message().content[0].input) == {"city", "days"}
    back = [
        *SUM, {"role": "assistant", "content": [block.to_dict() for block in said.content]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]},
            {"type": "text", "text": "So?"},
        ]},
    ]  # fmt: skip
    n_tokens = client.messages.count_tokens(model="mimo-tiny", messages=back, tools=[WEATHER]).input_tokens
    final = client.messages.create(**how | {"messages": back, "max_tokens": 2})
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == n_tokens


@pytest.mark.client("anthropic", "structured answers")
def test_structured_answers(client: Any) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    schema["additionalProperties"] = False
    form = {"effort": "none", "format": {"type": "json_schema", "schema": schema}}
    said = client.messages.create(messages=SUM, **HOW | {"extra_body": {"temperature": 0, "output_config": form}})
    assert isinstance(json.loads(said.content[0].text)["sum"], int)


def test_the_prompt_is_the_same_as_openais(server: Serving) -> None:
    ours = server.post("/tokenize", {"messages": [{"role": "system", "content": "Be kind."}, *SUM]}).json()["count"]
    for system in ("Be kind.", [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]):
        for content in ("What is 17 + 25?", [{"type": "text", "text": "What is 17 + 25?"}]):
            body = {"system": system, "messages": [{"role": "user", "content": content}]}
            assert server.post("/v1/messages/count_tokens", body).json() == {"input_tokens": ours}


@pytest.mark.client("anthropic", "errors")
def test_errors(server: Serving, client: Any, llm: LLM) -> None:
    with pytest.raises(anthropic.NotFoundError, match="no model 'claude'"):
        client.messages.create(messages=SUM, **HOW | {"model": "claude"})
    wrong: list[dict[str, Any]] = [
        {"messages": []}, {"messages": SUM, "max_tokens": 0}, {"messages": SUM, "unknown": 1},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": "x " * 3000}]},
        {"messages": SUM, "tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}},
        {"messages": SUM, "tools": [WEATHER], "tool_choice": {"type": "tool"}},
        {"messages": SUM, "tools": [{"type": "web_search", "name": "x"}]}, {"messages": SUM, "temperature": 1000},
    ]  # fmt: skip
    for body in wrong:
        refused = server.post("/v1/messages", {"max_tokens": 5, **body, "stream": "tools" in body})
        assert refused.status_code == 400, body
        assert refused.json()["type"] == "error" and refused.json()["error"]["type"] == "invalid_request_error"
    with serving(llm, api_keys=(digest("key"),)) as closed:
        stranger = anthropic.Anthropic(base_url=closed.url, api_key="none", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError):
            stranger.messages.create(messages=SUM, **HOW)
        friend = anthropic.Anthropic(base_url=closed.url, api_key="key", max_retries=0)
        assert friend.messages.create(messages=SUM, **HOW | {"max_tokens": 1}).usage.output_tokens == 1
