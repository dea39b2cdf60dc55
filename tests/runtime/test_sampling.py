"""Sampling: the distribution of drafted text is the model's own, and every option reaches llama.cpp.

The distribution is checked against probabilities computed here from the logits. The same check must fail for an
acceptance rule that is even slightly in favour of the drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mimo_gguf.core.errors import UsageError
from mimo_gguf.runtime.llama_api import LlamaContext, LlamaModel
from mimo_gguf.runtime.sampling import Sampler, SamplingOptions
from mimo_gguf.runtime.session import Session, SessionOptions

PROMPT = [int(token) for token in np.random.default_rng(3).integers(0, 256, 12)]
OPTIONS = SessionOptions(n_ctx=256, n_threads=1, adaptive=False)
HOT = SamplingOptions(temperature=0.7, top_p=1.0)


def probabilities(session: Session, tokens: Sequence[int], temperature: float) -> NDArray[np.float64]:
    session.slot.feed(tokens)
    assert session.slot._row is not None
    logits = session.target.logits(session.slot._row).astype(np.float64) / temperature
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


class Favouring(Sampler):
    """A wrong acceptance rule: what the MTP layer drafted is drawn somewhat more often than it should be."""

    session: Session
    favour = 0.1

    def sample(self, context: LlamaContext, row: int) -> int:
        token = super().sample(context, row)
        if self.session.slot._drafts and self._rng.random() < self.favour:
            return self.session.slot._drafts[0]
        return token

    _rng = np.random.default_rng(5)


def third_tokens(session: Session, sampler_type: type[Sampler], first: int, n: int) -> NDArray[np.int64]:
    """How often each token comes after PROMPT + [first] in `n` answers: the token that is drawn from a drafted pass."""
    counts = np.zeros(session.model.n_vocab, np.int64)
    bias = {first: 100.0}
    for seed in range(n):
        session.slot.feed(PROMPT)
        with Sampler(session.model, SamplingOptions(temperature=0, logit_bias=bias)) as forced:
            assert session.slot.next_token(forced) == first
        with sampler_type(session.model, replace(HOT, seed=seed)) as sampler:
            if isinstance(sampler, Favouring):
                sampler.session = session
            counts[session.slot.next_token(sampler)] += 1
    return counts


def p_value(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """Chi-square over the likely tokens, the others taken together."""
    likely = expected * counts.sum() >= 8
    seen = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum()) * counts.sum()
    return float(stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue)


def test_drafted_text_has_the_models_distribution(tiny: LlamaModel) -> None:
    first = 65
    with Session(tiny, replace(OPTIONS, mtp=False)) as plain:
        expected = probabilities(plain, [*PROMPT, first], HOT.temperature)
    with Session(tiny, OPTIONS) as session:
        assert session.drafter is not None
        drafted = int(np.abs(expected - 0.1).argmin())
        session.drafter.draft = lambda wanted: [[drafted]] * len(wanted)  # type: ignore[method-assign]
        right = third_tokens(session, Sampler, first, 1500)
        session.slot.settle()
        assert session.stats.n_drafted[0] == 1500
        assert session.stats.n_accepted[0] == right[drafted]
        assert p_value(right, expected) > 0.001
        wrong = third_tokens(session, Favouring, first, 1500)
        assert p_value(wrong, expected) < 1e-6


def draws(model: LlamaModel, n: int, **options: Any) -> list[int]:
    with Session(model, replace(OPTIONS, mtp=False)) as session:
        session.slot.feed(PROMPT)
        with Sampler(model, SamplingOptions(**options), PROMPT) as sampler:
            return [session.slot.next_token(sampler) for _ in range(n)]


def test_the_seed_decides(tiny: LlamaModel) -> None:
    assert draws(tiny, 20, seed=1, temperature=1.0) == draws(tiny, 20, seed=1, temperature=1.0)
    assert draws(tiny, 20, seed=1, temperature=1.0) != draws(tiny, 20, seed=2, temperature=1.0)
    with Sampler(tiny, SamplingOptions()) as sampler:
        assert sampler.options.seed is not None  # drawn, so that the answer can be had again


def test_narrow_options_are_greedy(tiny: LlamaModel) -> None:
    greedy = draws(tiny, 20, temperature=0)
    for narrow in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert draws(tiny, 20, temperature=1.5, seed=7, **narrow) == greedy
    assert draws(tiny, 20, temperature=1.5, seed=7) != greedy


def test_penalties_look_back_on_the_prompt(tiny: LlamaModel) -> None:
    said = draws(tiny, 30, temperature=0, presence_penalty=2.0, frequency_penalty=2.0, repeat_penalty=5.0)
    assert len(set(said)) > 25 and len(set(said)) > len(set(draws(tiny, 30, temperature=0)))
    with Session(tiny, replace(OPTIONS, mtp=False)) as session:
        first = int(probabilities(session, PROMPT, 1.0).argmax())
        session.slot.feed(PROMPT)
        with Sampler(tiny, SamplingOptions(temperature=0, repeat_penalty=10.0), [first]) as sampler:
            assert session.slot.next_token(sampler) != first


def test_grammar_and_bias(tiny: LlamaModel) -> None:
    with Session(tiny, OPTIONS) as session:
        session.slot.feed(PROMPT)
        with Sampler(tiny, SamplingOptions(temperature=1.0, grammar='root ::= [0-9]+ "."')) as sampler:
            said = [session.slot.next_token(sampler) for _ in range(12)]
    assert all(chr_of(token) in "0123456789." or token in (256, 258, 261) for token in said)
    assert draws(tiny, 5, temperature=0, logit_bias={42: 1000.0}) == [42] * 5
    with pytest.raises(UsageError, match="GBNF"):
        Sampler(tiny, SamplingOptions(grammar="root ::= ("))


def chr_of(token: int) -> str:
    """The tests' vocabulary is byte-level: ids 0 to 255 are the sorted GPT-2 alphabet."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    return alphabet[token] if token < 256 else "\0"


@pytest.mark.parametrize(
    "wrong",
    [{"top_p": 1.1}, {"min_p": -0.1}, {"top_k": -1}, {"temperature": float("nan")}, {"seed": -1}, {"seed": 1 << 32},
     {"repeat_penalty": 0.0}, {"presence_penalty": 3.0}, {"typical_p": 2.0}],
)  # fmt: skip
def test_values_no_sampler_understands(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SamplingOptions(**wrong)
