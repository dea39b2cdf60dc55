"""Use that is wrong, or rude: interrupted anywhere, after the end, with values of no meaning. Never a crash, never a
wrong token afterwards.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from mimo_gguf.chat.reasoning import split_reasoning
from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.core.errors import GgufError, UsageError
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.engine.slot import WindowFull
from mimo_gguf.engine.state import load_state, save_state
from mimo_gguf.llama.api import ContextOptions, api, load_model, open_context, open_mtp_context
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.model import Model
from mimo_gguf.runtime.params import SamplingParams
from tests.devices import only_on_a_cpu
from tests.runtime.test_model import OPTIONS, WHO, trained_path

__all__ = ["trained_path"]

STORY, SUM = ([{"role": "user", "content": text}] for text in ("Tell me a story.", "What is 2 + 2?"))


@pytest.fixture(scope="module")
def model(trained_path: Path) -> Iterator[Model]:
    with Model.open(trained_path, session=replace(OPTIONS, mtp=True)) as model:
        yield model


class InterruptedAt:
    """Ctrl-C at the n-th line that is executed in these files."""

    FILES = ("slot.py", "drafting.py", "session.py", "scheduler.py", "stream.py", "model.py")

    def __init__(self, n: int, files: tuple[str, ...] = FILES) -> None:
        self._n_left, self._files = n, files

    def __call__(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.endswith(self._files):
            return None
        if event == "line":
            self._n_left -= 1
            if not self._n_left:
                raise KeyboardInterrupt
        return self


@pytest.mark.many_passes
@pytest.mark.parametrize("n_draft", [1, 2])
def test_ctrl_c_anywhere_spoils_nothing(trained_path: Path, n_draft: int) -> None:
    """What is evaluated and what the slot believes to be stay together, wherever it strikes."""
    talks = (WHO, STORY, SUM)
    how: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "think_budget": 3}
    with Model.open(trained_path, session=replace(OPTIONS, n_draft=n_draft)) as model:
        wanted = [model.chat(talk, **how).tokens for talk in talks]
        n_interrupted = 0
        for n in range(1, 600, 7):
            talk = n % 3
            trace = sys.gettrace()
            sys.settrace(InterruptedAt(n))
            try:
                model.chat(talks[talk], **how)
            except KeyboardInterrupt:
                n_interrupted += 1
            finally:
                sys.settrace(trace)
            for after in (talk, (talk + 1) % 3):
                assert model.chat(talks[after], **how).tokens == wanted[after], n
        assert n_interrupted > 50


def test_what_is_raised_while_a_prompt_is_read(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp asks whether to stop; what is raised there would be lost in ctypes."""
    only_on_a_cpu("llama.cpp asks between two operations only on a CPU")
    wanted = model.chat(WHO, temperature=0).tokens
    asked: list[bool] = []

    def interrupted(*_: object) -> bool:
        asked.append(True)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return False

    model.forget()
    with monkeypatch.context() as patched:
        patched.setattr(Session, "_is_to_stop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.chat(WHO, temperature=0)
    assert len(asked) == 3  # and then it was aborted
    assert model.slot.tokens == [] and model.chat(WHO, temperature=0).tokens == wanted


def test_the_one_who_reads_may_fail(model: Model) -> None:
    """Between two pieces: the model goes on, and what was said, held back or not, is in the answer."""
    whole = model.chat(WHO, temperature=0)
    with (
        pytest.raises(ZeroDivisionError),
        model.chat(WHO, temperature=0, stream=True, stop="This is small talk.\nx") as stream,
    ):
        for _ in stream:
            _ = 1 / 0
    assert stream.answer.tokens == whole.tokens[: stream.n_tokens]
    for n in range(1, 16):
        with model.chat(WHO, temperature=0, stream=True, stop=("m a very nice", "all talk!")) as stream:
            while stream.n_tokens < n:
                next(stream)
        said = model.vocabulary.text(list(stream.answer.tokens))
        assert (stream.answer.reasoning, stream.answer.text) == split_reasoning(said)

    def fail(*_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.chat(STORY, progress=fail)
    assert model.chat(WHO, temperature=0).tokens == whole.tokens


def test_an_answer_stays_what_it_was(model: Model) -> None:
    with model.chat(WHO, temperature=0, stream=True) as first:
        next(first)
    second = model.chat(STORY, temperature=0, stream=True)
    second.read()
    unread = model.chat(SUM, temperature=0, stream=True)
    before = [stream.answer for stream in (first, second, unread)]
    model.chat(WHO, temperature=0)
    assert [stream.answer for stream in (first, second, unread)] == before
    assert before[1].stats.n_generated == len(before[1].tokens) and before[2].stats.n_generated == 0


def test_two_models_at_once(trained_path: Path, model: Model) -> None:
    alone = [model.chat(talk, temperature=0).tokens for talk in (WHO, STORY)]
    with Model.open(trained_path, session=OPTIONS) as other:
        streams = [model.chat(WHO, temperature=0, stream=True), other.chat(STORY, temperature=0, stream=True)]
        while pieces := [piece for stream in streams if (piece := next(stream, None))]:
            assert pieces
        assert [stream.answer.tokens for stream in streams] == alone
        unfinished = other.chat(WHO, temperature=0, stream=True)
        next(unfinished)
    assert list(unfinished) == [] and unfinished.answer.finish_reason == "abort"
    assert model.chat(WHO, temperature=0).tokens == alone[0]


def test_after_the_end(trained_path: Path, tmp_path: Path) -> None:
    """llama.cpp would end the process, or read what is no longer there."""
    model = Model.open(trained_path, session=OPTIONS)
    model.chat(WHO, max_tokens=3)
    sampler = Sampler(model.native, SamplingOptions())
    save_state(model.session, model.slot, "key", tmp_path / "talk.kv")
    model.close()
    model.close()
    uses: list[Callable[[], object]] = [
        lambda: model.chat(WHO),
        lambda: model.complete("a"),
        lambda: model.prompt_tokens(WHO),
        lambda: read_prompt(model.session, [1, 2]),
        lambda: next_token(model.session, sampler),
        lambda: model.session.step({model.slot: sampler}),
        lambda: Sampler(model.native, SamplingOptions(grammar='root ::= "a"')),
        lambda: Session(model.native),
        lambda: save_state(model.session, model.slot, "key", tmp_path / "again.kv"),
        lambda: load_state(model.session, model.slot, "key", tmp_path / "talk.kv"),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="closed"):
            use()
    sampler.close()
    llm = LLM(trained_path, max_model_len=256, options=OPTIONS)
    llm.close()
    with pytest.raises(UsageError, match="closed"):
        llm.generate("a")
    with Model.open(trained_path, session=OPTIONS) as model:
        for options in (SamplingOptions(), SamplingOptions(temperature=0), SamplingOptions(grammar='root ::= "a"')):
            read_prompt(model.session, [1])
            with Sampler(model.native, options) as sampler:
                pass
            with pytest.raises(UsageError, match="closed"):
                next_token(model.session, sampler)


def test_a_model_outlives_its_contexts(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten together in a circle, they are collected in any order, but freed in this one."""
    freed: list[str] = []
    module = api()
    for name in ("llama_free", "llama_model_free"):
        free = getattr(module, name)
        monkeypatch.setattr(module, name, lambda pointer, name=name, free=free: freed.append(name) or free(pointer))
    for _ in range(3):
        model = load_model(tiny_path)
        context = open_context(model, ContextOptions(n_ctx=256, n_threads=1))
        mtp = open_mtp_context(context)
        circle: list[object] = [model, context, mtp]
        circle.append(circle)
        del model, context, mtp, circle
        gc.collect()
    assert freed == ["llama_free", "llama_free", "llama_model_free"] * 3


def test_a_broken_template_leaves_nothing_open(trained_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    close = Session.close
    monkeypatch.setattr(Session, "close", lambda session: closed.append("session") or close(session))

    def broken(_: object) -> ChatTemplate:
        raise GgufError("the chat template is not valid jinja")

    monkeypatch.setattr(ChatTemplate, "of_file", broken)
    with pytest.raises(GgufError):
        Model.open(trained_path, session=OPTIONS)
    assert closed == ["session"]


@pytest.mark.parametrize("messages", [[], (), "hello", ["hello"], [None], {"role": "user", "content": "x"}])
def test_no_conversation(model: Model, messages: Any) -> None:
    for system in ("", None, "Be kind."):
        with pytest.raises(UsageError, match="not a conversation"):
            model.chat(messages, system=system)


def test_nothing_to_say(model: Model) -> None:
    """A prompt is read, so that the next one reuses it; one without tokens cannot be."""
    answer = model.chat(STORY, max_tokens=0)
    assert (answer.tokens, answer.text, answer.finish_reason) == ((), "", "length")
    assert model.chat(STORY, max_tokens=1).stats.n_reused >= answer.n_prompt - 1
    with pytest.raises(UsageError, match="no tokens"):
        model.complete("")


def test_a_prompt_longer_than_the_window_leaves_the_cache_alone(model: Model) -> None:
    model.chat(WHO, max_tokens=5, temperature=0)
    before = list(model.slot.tokens)
    with pytest.raises(WindowFull):
        model.complete("1" * 600)
    assert model.slot.tokens == before
    assert (
        len(model.complete("1" * 511, logit_bias={16: 1000.0}).tokens) == 2
    )  # one finds room, and one is drawn after it


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": math.nan}, {"temperature": math.inf}, {"temperature": "hot"}, {"temperature": None},
        {"top_k": -1}, {"top_k": 1.5}, {"top_k": 1 << 40}, {"top_p": -0.1}, {"top_p": 1.1}, {"min_p": math.nan},
        {"typical_p": 2}, {"repeat_penalty": 0}, {"repeat_penalty": -1}, {"presence_penalty": 9},
        {"frequency_penalty": -9}, {"penalty_last_n": -1}, {"seed": -1}, {"seed": 1.5}, {"seed": 1 << 32},
        {"dry_multiplier": -1}, {"dry_base": math.nan}, {"dry_allowed_length": -1}, {"dry_last_n": -1},
        {"grammar": ""}, {"grammar": 5}, {"grammar": "root := 5"}, {"grammar": 'root ::= root "a"'},
        {"logit_bias": {1024: 1.0}}, {"logit_bias": {-1: 1.0}}, {"logit_bias": {"5": 1.0}},
        {"logit_bias": {5: math.nan}}, {"stop": [5]}, {"max_tokens": "many"},
    ],
)  # fmt: skip
def test_values_without_a_meaning(model: Model, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        model.chat(WHO, **{"max_tokens": 3, **wrong})


def test_values_at_the_edge(model: Model) -> None:
    greedy = model.chat(WHO, temperature=0, max_tokens=20).tokens
    edges: tuple[dict[str, Any], ...] = (
        {"temperature": 1e-45}, {"temperature": 1e-5}, {"top_k": 1}, {"top_p": 0.0},
        {"min_p": 1.0}, {"typical_p": 0.0, "top_k": 1}, {"stop": None, "temperature": 0},
        {"temperature": np.float32(0), "top_k": np.int64(5), "max_tokens": np.int64(20)},
    )  # fmt: skip
    for edge in edges:
        assert model.chat(WHO, **{"max_tokens": 20, **edge}).tokens == greedy, edge
    for seed in (0, 0xFFFFFFFE):
        model.chat(WHO, seed=seed, temperature=100.0, repeat_penalty=10.0, penalty_last_n=1 << 20, max_tokens=5)


def test_a_seed_gives_the_same_again_with_drafts(trained_path: Path) -> None:
    """Also the one that was drawn because none was given. Only exact sessions promise it: otherwise a pass of several
    rows rounds differently, and a draw between two tokens, as one answer in thirty has, falls on the other side.
    """
    options = replace(OPTIONS, exact=True)
    with (
        Model.open(trained_path, session=replace(options, mtp=True)) as model,
        Model.open(trained_path, session=replace(options, mtp=False)) as plain,
    ):
        for talk in (WHO, STORY):
            first = model.chat(talk, temperature=1.2, max_tokens=60)
            assert first.seed is not None and first.stats.n_drafted[0] > 0
            again = [each.chat(talk, temperature=1.2, max_tokens=60, seed=first.seed) for each in (model, plain)]
            assert [answer.tokens for answer in again] == [first.tokens] * 2
        assert len({model.chat(STORY, temperature=2.0, max_tokens=20).tokens for _ in range(5)}) > 1


def test_an_answer_within_an_answer(model: Model) -> None:
    wanted = model.chat(WHO, temperature=0).tokens
    model.forget()
    with pytest.raises(UsageError, match="being generated"):
        model.chat(WHO, progress=lambda *_: model.chat(STORY))  # type: ignore[arg-type]
    for _ in model.chat(STORY, stream=True):
        assert model.chat(WHO, temperature=0).tokens == wanted  # between two pieces the first one ends


def test_many_prompts_beside_an_answer_on_its_way(trained_path: Path) -> None:
    """They use the same slots, each its own: the answer goes on, while they are made or afterwards."""
    with LLM(trained_path, max_model_len=256, max_num_seqs=2, options=OPTIONS) as llm:
        whole = llm.model.chat(WHO, temperature=0)
        wanted = llm.chat([STORY, SUM], SamplingParams(temperature=0, max_tokens=5))
        with llm.model.chat(WHO, temperature=0, stream=True) as stream:
            next(stream)
            assert llm.chat([STORY, SUM], SamplingParams(temperature=0, max_tokens=5)) == wanted
            assert stream.read().tokens == whole.tokens
        assert llm.chat([]) == []


def test_many_prompts_with_a_mistake_among_them(trained_path: Path) -> None:
    with LLM(trained_path, max_model_len=256, max_num_seqs=2, options=OPTIONS) as llm:
        wanted = llm.generate("a", SamplingParams(temperature=0, max_tokens=5))
        before = llm.model.session.stats.n_prompt
        with pytest.raises(UsageError, match="prompt 2 has no tokens"):
            llm.generate(["a", ""])
        with pytest.raises(UsageError, match="-1 answers"):
            llm.generate("a", SamplingParams(n=-1))
        assert llm.model.session.stats.n_prompt == before
        with pytest.raises(UsageError, match="bias for token 5000"):
            llm.generate(["a", "b"], [SamplingParams(), SamplingParams(logit_bias={5000: 1.0})])
        assert llm.generate("a", SamplingParams(temperature=0, max_tokens=5, stop=None)) == wanted
        last = SamplingParams(n=2, seed=0xFFFFFFFE, max_tokens=3)
        assert len(llm.generate("a", last)[0].outputs) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_ctx": "512"}, {"n_ctx": 1.5}, {"n_ctx": -1}, {"n_ubatch": "64"}, {"n_gpu_layers": "1"},
        {"n_gpu_layers": -5}, {"kv_type": 8}, {"mtp": "yes"}, {"devices": 5}, {"devices": ["GPU0"]},
        {"options": {"n_threads": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_arguments_of_another_kind(trained_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Model.load(trained_path, **wrong)


@pytest.mark.parametrize("path", [5, None, b"x.gguf"])
def test_paths_of_another_kind(path: Any) -> None:
    with pytest.raises(UsageError):
        Model.load(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sampling": {"temperature": 0}}, {"sampling": 5}, {"options": {"max_tokens": 1}}, {"progress": 5},
        {"logit_bias": [1]}, {"logit_bias": None}, {"allowed_tokens": 5}, {"allowed_tokens": ("a",)},
        {"bad_tokens": 5}, {"bad_tokens": (5,)}, {"stop": 5}, {"stop": b"a"}, {"grammar": b"root"}, {"system": 5},
        {"min_tokens": "1"}, {"logprobs": "1"}, {"stop_tokens": 5}, {"temprature": 1},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_another_kind(model: Model, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        model.chat(WHO, **{"max_tokens": 1, **wrong})


@pytest.mark.parametrize("wrong", [{"p_min": "x"}, {"kv_type": 5}, {"mtp": "x"}, {"n_draft": True}, {"flash_attn": 1}])
def test_sessions_of_another_kind(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SessionOptions(**wrong)


def test_prompts_in_other_forms(model: Model) -> None:
    ids = model.vocabulary.tokenize("Once upon")
    wanted = model.complete("Once upon", max_tokens=5, temperature=0).tokens
    for prompt in (ids, tuple(ids), np.array(ids), iter(ids)):
        assert model.complete(prompt, max_tokens=5, temperature=0).tokens == wanted  # type: ignore[arg-type]
    asked = model.chat(WHO, max_tokens=5, temperature=0).tokens
    assert model.chat(iter(WHO), max_tokens=5, temperature=0).tokens == asked
    wrong: list[Any] = [b"Once", None, 5, [[1]], [1.5], ["a"], [1 << 40], [-1]]
    for prompt in wrong:
        with pytest.raises(UsageError):
            model.complete(prompt)
