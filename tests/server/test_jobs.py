"""Bodies become requests of the scheduler: every field reaches the place where it has its effect."""

from __future__ import annotations

from typing import Any

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import MAX_SEED
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.jobs import EFFORTS, chat_job, completion_job
from mimo_gguf.server.requests import IGNORED, ChatBody, CompletionBody
from tests.server.serving import SUM


def job(llm: LLM, **fields: Any) -> Any:
    return chat_job(ChatBody.model_validate({"messages": SUM, **fields}), llm)


@pytest.mark.parametrize(
    ("field", "value", "name", "wanted"),
    [
        ("temperature", 0.25, "temperature", 0.25),
        ("top_p", 0.5, "top_p", 0.5),
        ("top_k", 7, "top_k", 7),
        ("min_p", 0.1, "min_p", 0.1),
        ("presence_penalty", 0.5, "presence_penalty", 0.5),
        ("frequency_penalty", -0.5, "frequency_penalty", -0.5),
        ("repetition_penalty", 1.25, "repeat_penalty", 1.25),
        ("logit_bias", {"5": -100}, "logit_bias", {5: -100}),
        ("seed", 7, "seed", 7),
        ("seed", MAX_SEED + 3, "seed", 2),
    ],
)  # fmt: skip
def test_how_tokens_are_drawn(llm: LLM, field: str, value: Any, name: str, wanted: Any) -> None:
    (request,) = job(llm, **{field: value}).requests
    assert getattr(request.sampling, name) == wanted
    (plain,) = job(llm).requests
    assert getattr(plain.sampling, name) != wanted


@pytest.mark.parametrize(
    ("field", "value", "name", "wanted"),
    [
        ("max_tokens", 5, "max_tokens", 5),
        ("max_completion_tokens", 5, "max_tokens", 5),
        ("stop", "a", "stop", ("a",)),
        ("stop", ["a", "b"], "stop", ("a", "b")),
        ("stop_token_ids", [3], "stop_tokens", (3,)),
        ("min_tokens", 2, "min_tokens", 2),
        ("ignore_eos", True, "ignore_eos", True),
        ("include_stop_str_in_output", True, "include_stop", True),
        ("skip_special_tokens", False, "skip_special", False),
        ("thinking_token_budget", 0, "think_budget", 0),
        ("reasoning_effort", "low", "think_budget", EFFORTS["low"]),
        ("logprobs", True, "logprobs", 0),
    ],
)
def test_what_ends_an_answer(llm: LLM, field: str, value: Any, name: str, wanted: Any) -> None:
    (request,) = job(llm, **{field: value}).requests
    assert getattr(request.options, name) == wanted
    (plain,) = job(llm).requests
    assert getattr(plain.options, name) != wanted


def test_answers_have_seeds_of_their_own(llm: LLM) -> None:
    assert [request.sampling.seed for request in job(llm, n=3, seed=5).requests] == [5, 6, 7]
    assert [request.sampling.seed for request in job(llm, n=2, seed=-1).requests] == [None, None]


def test_drafts(llm: LLM) -> None:
    given: list[tuple[dict[str, Any], int | None]] = [
        ({}, None), ({"mtp": True}, None), ({"mtp": False}, 0), ({"n_draft": 1}, 1), ({"mtp": True, "n_draft": 2}, 2),
    ]  # fmt: skip
    for fields, wanted in given:
        assert [request.n_draft for request in job(llm, **fields, n=2).requests] == [wanted] * 2


def test_an_explicit_budget_is_stronger_than_an_effort(llm: LLM) -> None:
    (request,) = job(llm, thinking_token_budget=9, reasoning_effort="none").requests
    assert request.options.think_budget == 9


def test_nulls_are_as_if_not_given(llm: LLM) -> None:
    nulls = dict.fromkeys(set(ChatBody.model_fields) - {"messages"})
    assert job(llm, **nulls).requests == job(llm).requests


def test_what_is_ignored_is_accepted_and_changes_nothing(llm: LLM) -> None:
    assert job(llm, **dict.fromkeys(IGNORED, "x")).requests == job(llm).requests


def test_messages_are_what_templates_expect(llm: LLM) -> None:
    def text(messages: list[dict[str, Any]]) -> str:
        return str(job(llm, messages=messages).asked[0].prompt.text)

    assert text([{"role": "developer", "content": "Be kind."}, *SUM]).startswith(
        "<|im_start|>system\nBe kind.<|im_end|>"
    )
    assert text(SUM).startswith("<|im_start|>system\n<|im_end|>"), "an empty one, as Xiaomi recommends"
    assert "What\nnow" in text([{"role": "user", "content": [{"type": "text", "text": "What"}, "now"]}])
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, "x"]}'}}
    spoken = text([*SUM, {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "audio": None}])
    assert '{"name": "f", "arguments": {"a": [1, "x"]}}' in spoken
    with pytest.raises(UsageError, match="not text"):
        text([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}])


def test_prompts_of_completions(llm: LLM) -> None:
    def prompts(given: Any) -> list[tuple[int, ...]]:
        body = CompletionBody.model_validate({"prompt": given})
        return [asked.prompt.tokens for asked in completion_job(body, llm).asked]

    ids = tuple(llm.get_tokenizer().encode("Once upon"))
    assert prompts("Once upon") == prompts(list(ids)) == prompts(["Once upon"]) == prompts([list(ids)]) == [ids]
    assert prompts(["Once upon", list(ids)]) == [ids, ids]
