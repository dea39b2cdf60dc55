"""Log-probabilities of answers and prompts against a torch reference in float32, and its softmax in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mimo_gguf.engine.logprobs import score_token
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.hardware.devices import host_device
from mimo_gguf.llama.api import LlamaContext
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.outputs import RequestOutput
from mimo_gguf.runtime.params import SamplingParams
from tests.checkpoints import CONFIG
from tests.reference import Mimo
from tests.tiny_models import make_model, random_state

STATE = random_state(CONFIG, n_mtp=1, seed=5)
PROMPT = np.random.default_rng(5).integers(3, 60, 30).tolist()
EXACT = SessionOptions(n_threads=1, adaptive=False, flash_attn=False)
ON_CPU: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 2, "kv_type": "f32", "devices": [host_device()]}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = make_model(tmp_path_factory.mktemp("scored"), state=STATE)
    with LLM(path, options=EXACT, **ON_CPU) as llm:
        yield llm


def raw_logits(tokens: tuple[int, ...]) -> NDArray[np.float64]:
    """Logits after each of `tokens`, shape (n, n_vocab)."""
    model = Mimo({**CONFIG, "num_nextn_predict_layers": 1})
    model.load_state_dict({name: torch.from_numpy(values) for name, values in STATE.items()})
    with torch.no_grad():
        return np.asarray(model.trunk(torch.tensor(tokens))[0].numpy(), np.float64)


def reference(tokens: tuple[int, ...]) -> NDArray[np.float64]:
    """Log-probabilities after each of `tokens`, shape (n, n_vocab)."""
    logits = raw_logits(tokens)
    highest: NDArray[np.float64] = logits.max(axis=-1, keepdims=True)
    return np.asarray(logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True)))


def ask(llm: LLM, **params: Any) -> RequestOutput:
    how = {"max_tokens": 12, "ignore_eos": True, **params}
    return llm.generate({"prompt_token_ids": PROMPT}, SamplingParams(**how))[0]


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1.5, "seed": 2, "repetition_penalty": 1.5}])
def test_they_are_the_models_own(llm: LLM, params: dict[str, Any]) -> None:
    """Before temperature and penalties, whatever was drawn, drafted or shared."""
    output = ask(llm, logprobs=4, prompt_logprobs=3, **params)
    (answer,) = output.outputs
    tokens = output.prompt_token_ids + answer.token_ids
    wanted = reference(tokens)
    assert answer.logprobs is not None and output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(PROMPT)
    assert len(answer.logprobs) == len(answer.token_ids) == 12
    for place, (scores, n_top) in enumerate(
        [(scores, 3) for scores in output.prompt_logprobs[1:]] + [(scores, 4) for scores in answer.logprobs], 1
    ):
        row = wanted[place - 1]
        best = np.argsort(-row, kind="stable")[:n_top].tolist()
        assert scores is not None and next(iter(scores)) == tokens[place]
        assert set(scores) == {tokens[place], *best} and [scores[token].rank for token in best] == list(
            range(1, n_top + 1)
        )
        for token, score in scores.items():
            assert score.logprob == pytest.approx(row[token], abs=2e-4)
        assert scores[tokens[place]].rank == int((row >= row[tokens[place]]).sum())
    assert answer.cumulative_logprob == pytest.approx(sum(wanted[i - 1][tokens[i]] for i in range(30, 42)), abs=2e-3)


def test_nothing_else_changes(llm: LLM) -> None:
    plain = ask(llm, temperature=0)
    scored = ask(llm, temperature=0, logprobs=0, prompt_logprobs=0)
    assert scored.outputs[0].token_ids == plain.outputs[0].token_ids
    assert plain.outputs[0].logprobs is None and plain.prompt_logprobs is None
    assert plain.outputs[0].cumulative_logprob is None
    assert scored.num_cached_tokens == 0  # every token of the prompt was read again
    assert scored.outputs[0].logprobs is not None
    assert all(len(scores) == 1 for scores in scored.outputs[0].logprobs)
    decoded = scored.outputs[0].logprobs[0][scored.outputs[0].token_ids[0]].decoded_token
    assert decoded == llm.get_tokenizer().decode(scored.outputs[0].token_ids[0])


def test_beside_others(llm: LLM) -> None:
    """Prompts that are read row by row share passes with those that are not, and with answers under way."""
    alone = ask(llm, temperature=0, logprobs=1, prompt_logprobs=1, n=2)
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (3, 20, 9)]
    scored = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1, prompt_logprobs=1, n=2)
    prompts: list[Any] = [PROMPT[:9], PROMPT[5:], PROMPT[2:], PROMPT]
    output = llm.generate(prompts, [*params, scored])[3]
    assert output.outputs[0].token_ids == alone.outputs[0].token_ids == output.outputs[1].token_ids
    for mine, theirs in ((output.prompt_logprobs, alone.prompt_logprobs),
                         (output.outputs[1].logprobs, alone.outputs[0].logprobs)):  # fmt: skip
        assert mine is not None and theirs is not None
        for here, there in zip(mine, theirs, strict=True):
            assert (here is None) is (there is None)
            for token in here or {}:
                assert here is not None and there is not None
                assert here[token].logprob == pytest.approx(there[token].logprob, abs=2e-3)


def test_no_answer_but_the_prompts(llm: LLM) -> None:
    output = ask(llm, temperature=0, max_tokens=0, prompt_logprobs=1)
    assert output.outputs[0].token_ids == () and output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None and all(output.prompt_logprobs[1:])


def test_more_rows_need_fewer_passes(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scores; the contexts are those that were planned."""
    passes: list[int] = []
    decode = LlamaContext.decode
    monkeypatch.setattr(LlamaContext, "decode", lambda *args: passes.append(1) or decode(*args))
    few = ask(llm, temperature=0, max_tokens=1, prompt_logprobs=0, seed=1)
    n_few = len(passes)
    options = replace(EXACT, n_prompt_rows=80)
    with LLM(llm.model.file.path, options=options, **ON_CPU) as wide:
        planned = wide.model.plan
        assert planned is not None and planned.settings.n_outputs_max == wide.model.session.target.n_outputs_max == 80
        assert wide.model.session.drafter is not None
        assert planned.settings.mtp_n_ubatch == wide.model.session.drafter.context.options.n_ubatch
        passes.clear()
        many = ask(wide, temperature=0, max_tokens=1, prompt_logprobs=0, seed=1)
    assert len(passes) < n_few / 2
    assert few.prompt_logprobs is not None and many.prompt_logprobs is not None
    for mine, theirs in zip(few.prompt_logprobs[1:], many.prompt_logprobs[1:], strict=True):
        assert mine is not None and theirs is not None
        assert [score.logprob for score in mine.values()] == pytest.approx(
            [score.logprob for score in theirs.values()], abs=2e-3
        )


def test_what_was_put_in_is_certain(llm: LLM) -> None:
    prompt = llm.get_tokenizer().encode("<think>")
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=1, thinking_token_budget=2, ignore_eos=True)
    (answer,) = llm.generate({"prompt_token_ids": prompt, "prompt": "<think>"}, params)[0].outputs
    assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids) == 8
    certain = [next(iter(scores.values())).logprob == 0 for scores in answer.logprobs]
    assert certain[:2] == [False, False] and any(certain)
    for token, scores, is_certain in zip(answer.token_ids, answer.logprobs, certain, strict=True):
        assert token in scores and (len(scores) == 1 or not is_certain)


def test_of_all_tokens(llm: LLM) -> None:
    (answer,) = ask(llm, temperature=0, max_tokens=1, logprobs=-1).outputs
    assert answer.logprobs is not None
    assert len(answer.logprobs[0]) == llm.model.vocabulary.n_tokens
    assert sum(np.exp(score.logprob) for score in answer.logprobs[0].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "penalty",
    [{"presence_penalty": 1.5}, {"frequency_penalty": 0.8}, {"repetition_penalty": 1.7},
     {"presence_penalty": -0.5, "frequency_penalty": 1.0, "repetition_penalty": 1.2}],
    ids=str,
)  # fmt: skip
def test_penalties_are_vllms(llm: LLM, penalty: dict[str, float]) -> None:
    """Presence and frequency count the answer's tokens alone, repetition the prompt's as well."""
    said: list[int] = []
    for _ in range(10):
        logits = raw_logits((*PROMPT, *said))[-1]
        seen = np.bincount([*PROMPT, *said], minlength=len(logits)) > 0
        repeated = np.where(logits > 0, logits / penalty.get("repetition_penalty", 1), 0) + np.where(
            logits <= 0, logits * penalty.get("repetition_penalty", 1), 0
        )
        logits = np.where(seen, repeated, logits)
        counts = np.bincount(said, minlength=len(logits))
        logits -= counts * penalty.get("frequency_penalty", 0) + (counts > 0) * penalty.get("presence_penalty", 0)
        said.append(int(logits.argmax()))
    assert ask(llm, temperature=0, max_tokens=10, **penalty).outputs[0].token_ids == tuple(said)
    assert ask(llm, temperature=0, max_tokens=10).outputs[0].token_ids != tuple(said)


def test_ranks_of_equals() -> None:
    logits = np.array([1, 3, 3, 0], np.float32)
    assert [(score.token, score.rank) for score in score_token(logits, 2, 3)] == [(2, 2), (1, 1), (0, 3)]
