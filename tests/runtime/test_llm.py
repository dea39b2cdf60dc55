"""vLLM's names over the engine: each prompt's answer is what it is alone, in the order given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mimo_gguf
from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.model import Model
from mimo_gguf.runtime.outputs import RequestOutput
from mimo_gguf.runtime.params import SamplingParams
from tests.runtime.test_model import OPTIONS, trained_path

__all__ = ["trained_path"]

ROOT = Path(__file__).parents[2]
QUESTIONS = ("Who are you?", "What is 17 + 25?", "Tell me a story.", "What is the capital of France?", "What is 2 + 2?")
CONVERSATIONS = [[{"role": "user", "content": question}] for question in QUESTIONS]
GREEDY = SamplingParams(temperature=0, max_tokens=60)


@pytest.fixture(scope="module")
def llm(trained_path: Path) -> Iterator[LLM]:
    options = SessionOptions(n_threads=1, adaptive=False)
    with LLM(trained_path, max_model_len=256, max_num_seqs=3, options=options) as llm:
        yield llm


@pytest.fixture(scope="module")
def model(trained_path: Path) -> Iterator[Model]:
    with Model.open(trained_path, session=OPTIONS) as model:
        yield model


def test_answers_are_what_each_is_alone(llm: LLM, model: Model) -> None:
    outputs = llm.chat(CONVERSATIONS, GREEDY)
    for output, conversation in zip(outputs, CONVERSATIONS, strict=True):
        alone = model.chat(conversation, temperature=0, max_tokens=60)
        (answer,) = output.outputs
        assert (answer.text, answer.reasoning, answer.token_ids) == (alone.text, alone.reasoning, alone.tokens)
        assert answer.finish_reason == ("stop" if alone.finish_reason == "stop" else "length")
        assert output.prompt_token_ids == tuple(model.prompt_tokens(conversation))
    assert isinstance(outputs[0], RequestOutput) and "Who are you?" in str(outputs[0].prompt)


def test_one_conversation_and_several_answers_to_it(llm: LLM, model: Model) -> None:
    (output,) = llm.chat(CONVERSATIONS[0], SamplingParams(n=4, temperature=3.0, seed=7, max_tokens=30))
    assert [answer.index for answer in output.outputs] == [0, 1, 2, 3]
    for answer in output.outputs:
        alone = model.chat(CONVERSATIONS[0], temperature=3.0, seed=7 + answer.index, max_tokens=30)
        assert answer.token_ids == alone.tokens
    assert len({answer.token_ids for answer in output.outputs}) > 1


def test_text_as_it_stands_with_its_own_parameters(llm: LLM) -> None:
    prompt = llm.model.prompt_text(CONVERSATIONS[0])
    whole, short, stopped = (
        output.outputs[0]
        for output in llm.generate(
            [prompt] * 3,
            [GREEDY, SamplingParams(temperature=0, max_tokens=4), SamplingParams(temperature=0, stop="</think>")],
        )
    )
    assert whole.text.startswith("<think>") and whole.reasoning == ""
    assert short.token_ids == whole.token_ids[:4] and short.finish_reason == "length"
    assert stopped.text == whole.text[: whole.text.index("</think>")] and stopped.finish_reason == "stop"
    assert llm.generate(prompt, GREEDY)[0].outputs[0] == whole


def test_what_does_not_fit_is_refused_before_anything_runs(llm: LLM) -> None:
    before = llm.model.session.stats.n_prompt
    with pytest.raises(UsageError, match=r"prompt 2 has \d+ tokens, and the window holds 256"):
        llm.generate(["a", "word " * 300], SamplingParams(temperature=0, max_tokens=5))
    assert llm.model.session.stats.n_prompt == before
    assert llm.generate([]) == [] and llm.generate("a", SamplingParams(n=0))[0].outputs == ()


def test_wrong_use_is_told_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(UsageError, match="2 parameters for 1 prompts"):
        llm.generate("a", [GREEDY, GREEDY])
    with pytest.raises(UsageError, match="top_p"):
        llm.chat(CONVERSATIONS, SamplingParams(top_p=2))
    assert SamplingParams(top_k=-1).sampling().top_k == 0


def test_the_example_of_the_docs_runs(trained_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = (("engine.md", 2), ("from-llama-cpp-python.md", 1))
    for page, n in pages:
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:n]:
            small = (
                code.replace("MiMo-7B-RL-Q4_K_M.gguf", str(trained_path))
                .replace("4096", "512")
                .replace("SamplingParams(max_tokens=500)", "SamplingParams(temperature=0, max_tokens=80)")
                .replace("500", "80")
            )
            exec(small, {})
            assert "17 + 25 = " in capsys.readouterr().out  # drawn, so that the sum may be wrong


def test_the_package_offers_it() -> None:
    assert mimo_gguf.LLM is LLM and mimo_gguf.SamplingParams is SamplingParams
