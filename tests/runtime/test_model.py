"""The Python API on the trained tiny model: answers, streaming, reasoning, acceptance, the end of everything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mimo_gguf
from mimo_gguf.chat.reasoning import Kind
from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.core.errors import MimoGgufError, UsageError
from mimo_gguf.core.model_source import Bytes, ModelSource, SourceTensor
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.model import AnswerOptions, Model
from tests.reference import MIMO_TINY
from tests.tiny_models import quantized, write_gguf

WHO = [{"role": "user", "content": "Who are you?"}]
OPTIONS = SessionOptions(n_ctx=512, n_threads=1, adaptive=False)


@pytest.fixture(scope="module")
def trained_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with open_checkpoint(MIMO_TINY) as source:
        return write_gguf(source, tmp_path_factory.mktemp("trained") / "mimo-tiny-BF16.gguf")


@pytest.fixture(scope="module")
def model(trained_path: Path) -> Iterator[Model]:
    with Model.open(quantized(trained_path, "Q4_K_M"), session=OPTIONS) as model:
        yield model


def test_an_exact_model(tiny_path: Path) -> None:
    """The plan says what the session then is; drafts are made if they are wished for, and change nothing."""
    said = []
    for mtp in (None, True):
        options = SessionOptions(n_threads=1, adaptive=False)
        with Model.load(tiny_path, n_ctx=512, exact=True, mtp=mtp, options=options) as model:
            assert model.plan is not None and model.plan.settings.is_exact
            assert model.has_mtp == bool(mtp)
            assert model.session.target.options.n_ubatch == 1
            said.append(model.complete("abc", temperature=0, max_tokens=20).tokens)
    assert said[0] == said[1]


def test_an_answer(model: Model) -> None:
    answer = model.chat(WHO, temperature=0)
    assert "MiMo" in answer.text and answer.reasoning
    assert "think>" not in answer.text + answer.reasoning
    assert answer.finish_reason == "stop" and answer.seed is None
    assert answer.tokens[-1] in model.vocabulary.end_tokens
    assert answer.stats.n_generated == len(answer.tokens)
    assert (answer.stats.acceptance or 0) > 0.5 and answer.stats.n_passes < len(answer.tokens)
    assert model.has_mtp


def test_streaming_gives_the_same(model: Model) -> None:
    whole = model.chat(WHO, temperature=0)
    stream = model.chat(WHO, temperature=0, stream=True)
    pieces = list(stream)
    assert len(pieces) > 10
    assert "".join(p.text for p in pieces if p.kind is Kind.ANSWER) == whole.text == stream.answer.text
    assert "".join(p.text for p in pieces if p.kind is Kind.REASONING) == whole.reasoning


def test_drafting_changes_no_answer(model: Model, trained_path: Path) -> None:
    with Model.open(model.file.path, session=replace(OPTIONS, mtp=False)) as plain:
        assert not plain.has_mtp
        for question in ("Who are you?", "What is 17 + 25?", "Tell me a story.", "What is the capital of France?"):
            messages = [{"role": "user", "content": question}]
            warm: dict[str, Any] = {"seed": 6, "temperature": 1.2, "repeat_penalty": 1.1}
            for sampling in ({"temperature": 0}, {"seed": 5}, warm):
                assert model.chat(messages, **sampling).tokens == plain.chat(messages, **sampling).tokens


def test_the_halves_decide_the_acceptance(trained_path: Path, tmp_path: Path) -> None:
    """Trained drafts are right; with the two halves of eh_proj in the checkpoint's order they are not."""
    with open_checkpoint(MIMO_TINY) as source:
        swapped = write_gguf(_swapped(source), tmp_path / "swapped.gguf")
    shares = []
    for path in (trained_path, swapped):
        with Model.open(path, session=OPTIONS) as model:
            for question in ("Who are you?", "What is 12 + 7?", "Tell me a story.", "What is the opposite of hot?"):
                model.chat([{"role": "user", "content": question}], temperature=0, max_tokens=80)
            shares.append(model.session.stats.acceptance or 0.0)
    assert shares[0] > 0.7 and shares[1] < shares[0] - 0.3


def _swapped(source: ModelSource) -> ModelSource:
    def swapped(tensor: SourceTensor) -> SourceTensor:
        if not tensor.info.name.endswith("nextn.eh_proj.weight"):
            return tensor

        def read(first: int, last: int, out: Bytes) -> None:
            tensor.read_rows(first, last, out)
            out[...] = np.roll(out, out.shape[1] // 2, axis=1)

        return replace(tensor, read_rows=read)

    return replace(source, tensors=tuple(swapped(tensor) for tensor in source.tensors))


def test_limits_and_stops(model: Model) -> None:
    full = model.chat(WHO, temperature=0)
    short = model.chat(WHO, temperature=0, max_tokens=5)
    assert short.tokens == full.tokens[:5] and short.finish_reason == "length"
    word = full.text.split()[3]
    stopped = model.chat(WHO, temperature=0, stop=word)
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", word)
    assert stopped.text == full.text[: full.text.index(word)]
    assert model.chat(WHO, temperature=0, max_tokens=0).tokens == ()


def test_the_window_can_fill(trained_path: Path) -> None:
    with Model.open(trained_path, session=replace(OPTIONS, n_ctx=256)) as model:
        story = "Tell me a story. " * 8
        answer = model.chat([{"role": "user", "content": story}], temperature=2.0, seed=1, logit_bias=_no_end(model))
        assert (answer.finish_reason, answer.stop_reason) == ("length", "window")
        assert answer.n_prompt + len(answer.tokens) == model.session.window + 1
        with pytest.raises(UsageError, match=r"the prompt has \d+ tokens, and the window holds 256"):
            model.complete("word " * 300)
        assert model.chat(WHO, temperature=0).finish_reason == "stop"


def _no_end(model: Model) -> dict[int, float]:
    return dict.fromkeys(model.vocabulary.end_tokens, -1000.0)


def test_turns_reuse_what_they_share(trained_path: Path) -> None:
    """On BF16: with quantized weights another batch size rounds the activations otherwise, and near ties may turn."""
    with Model.open(trained_path, session=OPTIONS) as model:
        first = model.chat(WHO, temperature=0)
        messages = [*WHO, {"role": "assistant", "content": first.text}, {"role": "user", "content": "What is 2 + 2?"}]
        second = model.chat(messages, temperature=0)
        assert second.stats.n_reused >= first.n_prompt - 1
    with Model.open(trained_path, session=OPTIONS) as fresh:
        assert fresh.chat(messages, temperature=0).tokens == second.tokens


def test_leaving_an_answer_early(model: Model) -> None:
    whole = model.chat(WHO, temperature=0)
    with model.chat(WHO, temperature=0, stream=True) as stream:
        next(stream)
    assert stream.answer.finish_reason == "abort"
    assert stream.answer.tokens == whole.tokens[: len(stream.answer.tokens)]
    abandoned = model.chat(WHO, temperature=0, stream=True)
    next(abandoned)
    assert model.chat(WHO, temperature=0).tokens == whole.tokens
    assert list(abandoned) == []


def test_cancel_from_another_thread(model: Model) -> None:
    done = threading.Event()

    def cancel() -> None:
        while not done.wait(0.05):  # again and again: a call between two answers cancels none
            model.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    n, answer = 0, None
    while n < 500 and (answer is None or answer.finish_reason != "abort"):
        answer = model.chat(WHO, temperature=1.0, max_tokens=200)
        n += 1
    done.set()
    canceller.join()
    assert answer is not None and answer.finish_reason == "abort"
    assert model.chat(WHO, temperature=0).finish_reason == "stop"


def test_complete_is_text_as_it_stands(model: Model) -> None:
    prompt = model.template.render([{"role": "system", "content": ""}, *WHO])
    answer = model.complete(prompt, temperature=0)
    assert answer.reasoning == "" and answer.text.startswith("<think>")
    assert answer.tokens == model.chat(WHO, temperature=0).tokens


def test_unknown_options_are_named(model: Model) -> None:
    with pytest.raises(UsageError, match="tempreature"):
        model.chat(WHO, tempreature=0)
    with pytest.raises(UsageError, match="top_p"):
        model.chat(WHO, top_p=7)


def test_the_post_norm_state_can_be_chosen(trained_path: Path) -> None:
    answers = []
    for hidden in ("pre", "post"):
        with Model.open(trained_path, session=replace(OPTIONS, hidden=hidden)) as model:
            answers.append(model.chat(WHO, temperature=0))
    assert answers[0].tokens == answers[1].tokens
    assert all(answer.stats.acceptance is not None for answer in answers)


def test_the_package_offers_it() -> None:
    assert mimo_gguf.Model is Model
    with pytest.raises(AttributeError):
        _ = mimo_gguf.Modell  # type: ignore[attr-defined]
    with pytest.raises(MimoGgufError):
        Model.load("absent.gguf")


def test_answer_options_defaults() -> None:
    assert AnswerOptions() == AnswerOptions(max_tokens=None, stop=(), think_budget=None, split_reasoning=True)
