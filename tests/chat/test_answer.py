"""`AnswerText`: tokens that are noted and said later make the same answer as tokens that are said at once."""

from __future__ import annotations

import random

import pytest

from mimo_gguf.chat.answer import AnswerOptions, AnswerText
from mimo_gguf.chat.reasoning import Kind
from mimo_gguf.llama.api import LlamaModel
from mimo_gguf.llama.vocabulary import Vocabulary

TEXTS = ("<think>\nWas nützt es? 日本\n</think>\n\nVielleicht 🦊.", "🦊 ohne Gedanken", "<think>abgebr")
OPTIONS = (
    AnswerOptions(), AnswerOptions(split_reasoning=False), AnswerOptions(max_tokens=9),
    AnswerOptions(ignore_eos=True, skip_special=False), AnswerOptions(include_stop=True, stop_tokens=(40,)),
    AnswerOptions(ignore_eos=True, stop_tokens=(77,)),
)  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_noted_tokens_make_the_same_answer(tiny: LlamaModel, options: AnswerOptions) -> None:
    vocabulary, rng = Vocabulary(tiny), random.Random(5)
    for text in TEXTS * 30:
        tokens = [*vocabulary.tokenize(text), rng.choice(sorted(vocabulary.end_tokens))]
        at_once, late = AnswerText(vocabulary, options), AnswerText(vocabulary, options)
        assert late.can_wait
        n_before = None
        for token in tokens:
            if at_once.ended:
                break
            at_once.add(token)
            late.note(token)
            if n_before is None and at_once.text(Kind.ANSWER):
                n_before = len(at_once.tokens) - 1
            assert (late.ended, late.finish_reason, late.stop_reason) == (
                at_once.ended, at_once.finish_reason, at_once.stop_reason,
            )  # fmt: skip
            if rng.random() < 0.1:
                late.say()
        late.say()
        for each in (at_once, late):
            each.finish()
        assert late.tokens == at_once.tokens and not late.n_unsaid
        assert all(late.text(kind) == at_once.text(kind) for kind in Kind)
        assert late.n_thought == at_once.n_thought
        if n_before is not None:
            assert late.n_thought == n_before


def test_a_text_that_may_end_the_answer_cannot_wait(tiny: LlamaModel) -> None:
    for options in (AnswerOptions(stop=("a",)), AnswerOptions(think_budget=3)):
        assert not AnswerText(Vocabulary(tiny), options).can_wait
