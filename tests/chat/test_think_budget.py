"""The reasoning budget: exactly so many tokens, whatever else is asked for at the same time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mimo_gguf.chat.answer import AnswerOptions
from mimo_gguf.chat.reasoning import opened_block, split_reasoning
from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.chat.think_budget import ThinkBudget
from mimo_gguf.cli import chat
from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.engine.state import load_state, save_state
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.model import Answer, Model
from mimo_gguf.runtime.params import SamplingParams
from tests.chat.test_text_stream import in_pieces
from tests.reference import MIMO_TINY
from tests.tiny_models import quantized, write_gguf

OPTIONS = SessionOptions(n_ctx=512, n_threads=1, adaptive=False)
WHO, SUM, STORY = (
    [{"role": "user", "content": text}] for text in ("Who are you?", "What is 17 + 25?", "Tell me a story.")
)
N_OPENING = 2  # tokens of "<think>\n" in the tiny model's vocabulary
CLOSE = "</think>\n\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with open_checkpoint(MIMO_TINY) as source:
        exact = write_gguf(source, tmp_path_factory.mktemp("budget") / "mimo-tiny.gguf")
    return quantized(exact, "F32")  # so that no near tie turns with the size of a batch


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model.open(path, session=OPTIONS) as model:
        yield model


@pytest.fixture(scope="module")
def plain(path: Path) -> Iterator[Model]:
    with Model.open(path, session=replace(OPTIONS, mtp=False)) as model:
        yield model


def closing_of(pieces: Sequence[bytes], n: int, opened: str | None = None) -> tuple[int, str] | None:
    """After how many of the pieces the block is to be closed, and with what; None: never."""
    budget = ThinkBudget(n, opened)
    for place in range(len(pieces) + 1):
        if budget.closings:
            return place, budget.closings[0]
        if place < len(pieces):
            budget.push(pieces[place])
    return None


@pytest.mark.parametrize(
    ("n", "pieces", "wanted"),
    [
        (0, ["<think>", "a"], (1, "\n" + CLOSE)),
        (0, ["<think>\n", "a"], (1, CLOSE)),
        (0, ["<th", "ink", ">\n", "a"], (3, CLOSE)),
        (0, ["<", "t", "h", "i", "nk", ">", "\n"], (6, "\n" + CLOSE)),
        (1, ["<think>", "\n", "a"], (2, CLOSE)),  # every token after the tag counts
        (2, [" \n", "<think", ">\n", "a", "b", "c"], (5, "\n" + CLOSE)),
        (1, ["<think", ">Let", " me"], (2, "\n" + CLOSE)),  # the tag's token brings the first of the reasoning
        (0, ["<think", ">Let", " me"], (2, "\n" + CLOSE)),
        (2, ["<think>\n", "a", ".\n", "b"], (3, CLOSE)),
        (2, ["<think>\n", "a", "</", "think"], (3, "think>\n\n")),  # the tag that has begun is finished
        (3, ["<think>\n", "a", "</", "think", ">"], (4, ">\n\n")),
        (2, ["<think>\n", "a", " <", " b"], (3, "/think>\n\n")),
        (3, ["<think>\n", "a", "</", "div>", "b"], (4, "\n" + CLOSE)),
        (9, ["<think>\n", "a", "</", "think", ">\n\n", *"long answer"], None),
        (1, ["<think>\n</think>", *"long answer"], None),
        (0, ["Hello", "<think>", "a", "b"], None),
        (0, ["<thin", "g>", "a"], None),
    ],
)
def test_where_and_how_a_block_is_closed(n: int, pieces: list[str], wanted: tuple[int, str] | None) -> None:
    assert closing_of([piece.encode() for piece in pieces], n) == wanted


def test_a_character_is_finished_first() -> None:
    euro = "€".encode()
    pieces = [b"<think>\n", b"a", euro[:1], euro[1:2], euro[2:], b"b"]
    assert closing_of(pieces, 1) == (2, "\n" + CLOSE)
    assert closing_of(pieces, 2) == (5, "\n" + CLOSE)
    assert closing_of([b"<think>\n", euro[:1], b"a"], 1) == (3, "\n" + CLOSE)  # one that never is


def test_a_block_the_prompt_opened() -> None:
    assert opened_block("...assistant\n<think>\n") == "\n"
    assert opened_block("...assistant\n<think>") == ""
    assert opened_block("...assistant\n") is None and opened_block("say <think> twice") is None
    assert closing_of([b"a", b"b"], 0, "\n") == (0, CLOSE)
    assert closing_of([b"a", b"b"], 0, "") == (0, "\n" + CLOSE)
    assert closing_of([b"a", b"b", b"c"], 2, "\n") == (2, "\n" + CLOSE)
    assert closing_of([b"a", b"</think>", b"c"], 2, "\n") is None


@given(st.text(alphabet="<think>/ \na€"), st.lists(st.integers(0, 60)), st.integers(0, 9))
def test_what_is_closed_reads_as_closed(text: str, cuts: list[int], n: int) -> None:
    """Whatever the model wrote: after the closing the splitter is in the answer, and the reasoning has no tag."""
    pieces = in_pieces(f"<think>{text}".encode(), cuts)
    closing = closing_of(pieces, n)
    if closing is None:
        return
    place, said = closing
    before = b"".join(pieces[:place]).decode()
    reasoning, answer = split_reasoning(before + said + "answer")
    assert answer == "answer" and "</think>" not in reasoning


def reasoning_tokens(model: Model, answer: Answer, n_opening: int = N_OPENING) -> int:
    """Tokens between the tags: after the opening one, before those that spell the closing one."""
    text = b""
    for place, token in enumerate(answer.tokens[n_opening:]):
        text += model.vocabulary.piece(token)
        if b"</think>" in text:
            closing = model.vocabulary.tokenize("</think>\n\n")
            return place + 1 - len(closing) - (answer.tokens[n_opening + place - len(closing)] == newline(model))
    raise AssertionError("not closed")


def newline(model: Model) -> int:
    (token,) = model.vocabulary.tokenize("\n")
    return token


@pytest.mark.parametrize("question", [WHO, SUM, STORY])
def test_exactly_so_many_tokens_with_and_without_drafts(model: Model, plain: Model, question: list) -> None:  # type: ignore[type-arg]
    """Against what a session without drafts says after prompt, reasoning and closing, put together by hand."""
    free = model.chat(question, temperature=0)
    natural = reasoning_tokens(model, free)
    assert natural > 4
    prompt = model.prompt_tokens(question)
    for n in {*range(3), *range(3, natural - 2, 3), *range(natural - 2, natural + 4)}:
        drafted, undrafted = (each.chat(question, temperature=0, think_budget=n) for each in (model, plain))
        assert drafted.tokens == undrafted.tokens
        assert (drafted.text, drafted.reasoning) == (undrafted.text, undrafted.reasoning)
        assert drafted.finish_reason == "stop" and drafted.text
        assert model.slot.tokens == [*prompt, *drafted.tokens][: len(model.slot.tokens)]
        assert model.session.target.last_position() == len(model.slot.tokens) - 1
        if n >= natural:  # nothing cut off: nothing changed
            assert drafted.tokens == free.tokens
            continue
        assert reasoning_tokens(model, drafted) == n
        said = list(free.tokens[: N_OPENING + n])
        line_end = model.vocabulary.piece(said[-1]).endswith(b"\n")
        closed = said + model.vocabulary.tokenize(CLOSE if line_end else "\n" + CLOSE)
        assert list(drafted.tokens) == closed + greedy_after(plain, prompt + closed)
        assert drafted.reasoning == model.vocabulary.text(said[N_OPENING:]).rstrip("\n")


def greedy_after(model: Model, tokens: list[int]) -> list[int]:
    model.forget()
    read_prompt(model.session, tokens)
    said: list[int] = []
    with Sampler(model.native, SamplingOptions(temperature=0)) as sampler:
        while not said or said[-1] not in model.vocabulary.end_tokens:
            said.append(next_token(model.session, sampler))
    return said


def test_sampled_answers_stop_in_the_same_place(model: Model, plain: Model) -> None:
    for seed in range(4):
        options: dict[str, Any] = {"seed": seed, "temperature": 1.3, "repeat_penalty": 1.2, "think_budget": 5}
        options["dry_multiplier"] = 0.5
        assert model.chat(SUM, max_tokens=60, **options).tokens == plain.chat(SUM, max_tokens=60, **options).tokens


def test_the_longest_answer_counts_the_closing(model: Model) -> None:
    whole = model.chat(WHO, temperature=0, think_budget=2)
    for most in range(N_OPENING, len(whole.tokens)):
        answer = model.chat(WHO, temperature=0, think_budget=2, max_tokens=most)
        assert answer.tokens == whole.tokens[:most] and answer.finish_reason == "length"
        assert whole.reasoning.startswith(answer.reasoning) and whole.text.startswith(answer.text)


def test_stop_strings_are_looked_for_in_the_closing(model: Model) -> None:
    for stop, text in (("</think>", ""), ("\n</th", ""), ("</think>\n\nI", ""), ("very", "I am a ")):
        answer = model.chat(WHO, temperature=0, think_budget=2, stop=stop)
        assert (answer.stop_reason is not None, answer.text, answer.reasoning) == (True, text, "This is")
        assert model.vocabulary.text(list(answer.tokens)).count(stop) == 1
        assert stop not in model.vocabulary.text(list(answer.tokens[:-1]))


def test_counting_does_not_wait_for_what_a_stop_string_holds_back(model: Model) -> None:
    stopped = model.chat(WHO, temperature=0, think_budget=2, stop="<think>\nThis is small talk. Not")
    assert stopped.tokens == model.chat(WHO, temperature=0, think_budget=2).tokens


def test_a_bias_does_not_keep_the_block_open(model: Model) -> None:
    never = dict.fromkeys(model.vocabulary.tokenize("</"), -100.0)
    answer = model.chat(WHO, temperature=0, think_budget=3, logit_bias=never)
    assert answer.reasoning == "This is small" and answer.text


def test_what_is_put_in_counts_for_penalties(model: Model, plain: Model) -> None:
    penalized = SamplingOptions(temperature=0, repeat_penalty=1.3, presence_penalty=0.8, penalty_last_n=200)
    answer = model.chat(WHO, sampling=penalized, think_budget=3, max_tokens=30)
    put = model.vocabulary.tokenize("\n" + CLOSE)
    known = [*model.prompt_tokens(WHO), *answer.tokens[: N_OPENING + 3 + len(put)]]
    assert known[-len(put) :] == put
    read_prompt(plain.session, known)
    with Sampler(plain.native, penalized, known) as sampler:
        rest = [next_token(plain.session, sampler) for _ in range(30 - N_OPENING - 3 - len(put))]
    assert list(answer.tokens[N_OPENING + 3 + len(put) :]) == rest[: len(answer.tokens) - N_OPENING - 3 - len(put)]


def test_a_grammar_hears_of_the_closing(model: Model) -> None:
    """Otherwise it would ask for another one."""
    anywhere = r'root ::= "<think>\n" [^<]* "</think>\n\n" [0-9]{3}'
    answer = model.chat(WHO, temperature=0, grammar=anywhere, think_budget=4)
    assert reasoning_tokens(model, answer) == 4
    assert answer.text.isdigit() and len(answer.text) == 3 and answer.finish_reason == "stop"
    bare = model.chat(WHO, temperature=0, grammar=r'root ::= "<think>" [^<]* "</think>" [0-9]{3}', think_budget=4)
    assert bare.text.isdigit() and len(bare.text) == 3
    late = r'root ::= "<think>\n" [a-z ]{40,60} "\n</think>\n\n" [0-9]{3}'
    later = model.chat(WHO, temperature=0, grammar=late, think_budget=1)  # closed as soon as the grammar allows it
    assert 40 <= len(later.reasoning) < 60 and later.text.isdigit() and later.finish_reason == "stop"
    none = model.chat(WHO, temperature=0, grammar="root ::= [0-9]{5}", think_budget=0)
    assert none.text.isdigit() and none.reasoning == ""


def test_a_template_that_opens_the_block(path: Path) -> None:
    with Model.open(path, session=OPTIONS) as model:
        model.template = Opening(model.template)  # type: ignore[assignment]
        free = model.chat(WHO, temperature=0)
        assert free.reasoning == "This is small talk." and free.text.startswith("I am")
        for n in range(5):
            answer = model.chat(WHO, temperature=0, think_budget=n)
            assert answer.reasoning == model.vocabulary.text(list(free.tokens[:n]))
            assert reasoning_tokens(model, answer, 0) == n and answer.text
        assert model.chat(WHO, temperature=0, think_budget=1).reasoning == "This"


class Opening:
    """A chat template whose generation prompt opens the block, as some reasoning models' do."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def render(self, *messages: object, **variables: object) -> str:
        return self._template.render(*messages, **variables) + "<think>\n"  # type: ignore[arg-type]


def test_text_as_it_stands_has_a_budget_too(model: Model) -> None:
    prompt = model.prompt_text(WHO)
    answer = model.complete(prompt, temperature=0, think_budget=3)
    assert answer.tokens == model.chat(WHO, temperature=0, think_budget=3).tokens
    assert answer.text.startswith("<think>\nThis is small\n</think>\n\n") and answer.reasoning == ""


def test_a_full_window_ends_before_the_closing(path: Path) -> None:
    with Model.open(path, session=replace(OPTIONS, n_ctx=256)) as small:
        (always,) = small.vocabulary.tokenize("a")
        closing = small.vocabulary.tokenize("\n" + CLOSE)
        options = AnswerOptions(think_budget=1)
        for n_prompt in range(246, 255):
            prompt = "1" * (n_prompt - N_OPENING) + "<think>\n"  # digits are tokens of their own
            answer = small.complete(prompt, options=options, temperature=0, logit_bias={always: 1000.0})
            fits = n_prompt + 1 + len(closing) < 256
            assert answer.n_prompt == n_prompt and answer.stop_reason == "window"
            assert answer.tokens == (always, *([*closing, *[always] * (256 - n_prompt - len(closing))] if fits else []))
            assert answer.reasoning == "a" and bool(answer.text) == fits


def test_the_next_turn_reuses_what_was_closed(path: Path) -> None:
    with Model.open(path, session=OPTIONS) as model:
        answer = model.chat(WHO, temperature=0, think_budget=3)
        said = f"<think>\n{answer.reasoning}\n</think>\n\n{answer.text}"
        history = [*WHO, {"role": "assistant", "content": said}, *SUM]
        following = model.chat(history, temperature=0, think_budget=6)
        assert following.stats.n_reused >= answer.n_prompt + len(answer.tokens) - 2
    with Model.open(path, session=OPTIONS) as fresh:
        assert fresh.chat(history, temperature=0, think_budget=6).tokens == following.tokens


def test_a_session_saved_after_a_closing_goes_on_alike(path: Path, tmp_path: Path) -> None:
    for n_read in (4, 9, 14):  # within the closing, and after it
        with Model.open(path, session=OPTIONS) as model:
            with model.chat(WHO, temperature=0, think_budget=3, stream=True) as stream:
                while stream.n_tokens < n_read:
                    next(stream)
            known = list(model.slot.tokens)
            save_state(model.session, model.slot, "key", tmp_path / "talk.kv")
            wanted = greedy_from(model, known)
        with Model.open(path, session=OPTIONS) as model:
            assert load_state(model.session, model.slot, "key", tmp_path / "talk.kv") and model.slot.tokens == known
            assert greedy_from(model, known) == wanted


def greedy_from(model: Model, tokens: list[int]) -> list[int]:
    read_prompt(model.session, tokens)
    with Sampler(model.native, SamplingOptions(temperature=0)) as sampler:
        return [next_token(model.session, sampler) for _ in range(10)]


def test_each_of_several_conversations_has_its_budget(path: Path, model: Model) -> None:
    conversations = [WHO, SUM, STORY, WHO]
    budgets = [3, 0, None, 7]
    params = [SamplingParams(temperature=0, max_tokens=60, thinking_token_budget=n) for n in budgets]
    with LLM(path, max_model_len=256, max_num_seqs=3, options=SessionOptions(n_threads=1, adaptive=False)) as llm:
        for output, question, n in zip(llm.chat(conversations, params), conversations, budgets, strict=True):
            alone = model.chat(question, temperature=0, max_tokens=60, think_budget=n)
            assert output.outputs[0].token_ids == alone.tokens
            assert (output.outputs[0].text, output.outputs[0].reasoning) == (alone.text, alone.reasoning)
        several = SamplingParams(n=4, temperature=1.0, seed=3, max_tokens=40, thinking_token_budget=2)
        (output,) = llm.chat(SUM, several)
        for answer in output.outputs:
            alone = model.chat(SUM, temperature=1.0, seed=3 + answer.index, max_tokens=40, think_budget=2)
            assert answer.token_ids == alone.tokens
        llm.model.template = Opening(llm.model.template)  # type: ignore[assignment]
        (output,) = llm.chat(WHO, SamplingParams(temperature=0, thinking_token_budget=0))
        assert output.outputs[0].reasoning == "" and output.outputs[0].text


@pytest.mark.parametrize("mtp", ["--always-draft", "--no-mtp"])
def test_the_command_line_keeps_to_it(path: Path, model: Model, mtp: str) -> None:
    app = typer.Typer()
    app.command()(chat.command)
    arguments = [str(path), "-p", "What is 17 + 25?", "--json", "--temp", "0", "--threads", "1", "--ctx", "512", mtp]
    for n in (1, 6):
        result = CliRunner().invoke(app, [*arguments, "--think-budget", str(n)])
        document = json.loads(result.stdout)
        alone = model.chat(SUM, temperature=0, think_budget=n)
        assert (document["text"], document["reasoning"]) == (alone.text, alone.reasoning)
        assert len(model.vocabulary.tokenize(document["reasoning"])) == n and document["finish_reason"] == "stop"


def test_limits_that_make_no_sense(model: Model) -> None:
    for wrong in ({"think_budget": -1}, {"max_tokens": -1}, {"max_tokens": 2.5}, {"stop": (3,)}):
        with pytest.raises(UsageError):
            model.chat(WHO, **wrong)
    with pytest.raises(UsageError):
        AnswerOptions(think_budget=-1)
