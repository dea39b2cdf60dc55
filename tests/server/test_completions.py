"""`/v1/completions` as the official client and evaluation harnesses use it: prompts in all forms, echo, scores."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.params import SamplingParams
from tests.server.serving import Serving
from tests.server.test_openai_chat import chunks_of

HOW: dict[str, Any] = {"model": "mimo-tiny", "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def client(server: Serving) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.mark.client("openai", "completions")
def test_prompts_and_their_answers_in_order(client: Any, llm: LLM) -> None:
    prompts = ["Once upon", "1 2 3"]
    wanted = [
        output.outputs[0].text
        for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    ]
    said = client.completions.create(prompt=prompts, **HOW)
    assert [choice.text for choice in said.choices] == wanted
    assert [choice.index for choice in said.choices] == [0, 1] and said.choices[0].finish_reason == "length"
    assert said.object == "text_completion" and said.usage.completion_tokens == 16
    ids = [llm.get_tokenizer().encode(prompt) for prompt in prompts]
    assert [choice.text for choice in client.completions.create(prompt=ids, n=1, **HOW).choices] == wanted
    assert [c.index for c in client.completions.create(prompt=ids, n=2, **HOW).choices] == [0, 1, 2, 3]
    assert client.completions.create(prompt="1 2 3", model="mimo-tiny").usage.completion_tokens <= 16


@pytest.mark.client("openai", "echo with log-probabilities")
def test_echo_scores_the_prompt(client: Any, llm: LLM) -> None:
    """What lm-eval sends for log-likelihoods: ids, echo, logprobs, one token to be ignored."""
    ids = llm.get_tokenizer().encode("Once upon a time")
    (output,) = llm.generate([ids], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1), use_tqdm=False)
    assert output.prompt_logprobs is not None
    wanted = [None if at is None else at[token].logprob for token, at in zip(ids, output.prompt_logprobs, strict=True)]
    choice = client.completions.create(prompt=[ids], echo=True, logprobs=1, **HOW | {"max_tokens": 1}).choices[0]
    scores = choice.logprobs
    assert len(scores.tokens) == len(ids) + 1 == len(scores.token_logprobs) == len(scores.top_logprobs)
    assert scores.token_logprobs[0] is None and wanted[0] is None
    assert scores.token_logprobs[1:-1] == pytest.approx(wanted[1:], abs=0.02)
    assert scores.top_logprobs[0] is None
    for token, logprob, top in zip(scores.tokens[1:], scores.token_logprobs[1:], scores.top_logprobs[1:], strict=True):
        assert top[token] == logprob <= max(top.values()) and len(top) <= 2
    assert choice.text == "".join(scores.tokens) and choice.text.startswith("Once upon a time")
    for token, at in zip(scores.tokens, scores.text_offset, strict=True):
        assert choice.text[at : at + len(token)] == token
    nothing = client.completions.create(prompt=[ids], echo=True, logprobs=1, **HOW | {"max_tokens": 0}).choices[0]
    assert nothing.text == "Once upon a time" and len(nothing.logprobs.tokens) == len(ids)


def test_a_stream(server: Serving, client: Any) -> None:
    whole = client.completions.create(prompt="Once upon", logprobs=2, **HOW).choices[0]
    body = {**HOW, "prompt": "Once upon", "logprobs": 2, "stream_options": {"include_usage": True}}
    *chunks, last, usage = chunks_of(server, body, "/v1/completions")
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole.text
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    assert [t for chunk in chunks for t in chunk["choices"][0]["logprobs"]["tokens"]] == whole.logprobs.tokens
    offsets = [at for chunk in chunks for at in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == [at - len("Once upon") for at in whole.logprobs.text_offset]
    assert last["choices"][0]["finish_reason"] == "length" and usage["usage"]["completion_tokens"] == 8
    echoed = chunks_of(server, {**HOW, "prompt": "Once upon", "echo": True}, "/v1/completions")
    assert "".join(chunk["choices"][0]["text"] for chunk in echoed) == f"Once upon{whole.text}"
