"""Sampling: the distribution of drafted text is the model's own, and every option reaches llama.cpp.

The distribution is checked against probabilities computed here from the logits. The same check must fail for an
acceptance rule that is even slightly in favour of the drafts.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.llama.api import LlamaContext, LlamaModel, api
from mimo_gguf.llama.vocabulary import Vocabulary

PROMPT = [int(token) for token in np.random.default_rng(3).integers(0, 256, 12)]
OPTIONS = SessionOptions(n_ctx=256, n_threads=1, adaptive=False)
HOT = SamplingOptions(temperature=0.7, top_p=1.0)


def probabilities(session: Session, tokens: Sequence[int], temperature: float) -> NDArray[np.float64]:
    read_prompt(session, tokens)
    assert session.slot.row is not None
    logits = session.target.logits(session.slot.row).astype(np.float64) / temperature
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
        read_prompt(session, PROMPT)
        with Sampler(session.model, SamplingOptions(temperature=0, logit_bias=bias)) as forced:
            assert next_token(session, forced) == first
        with sampler_type(session.model, replace(HOT, seed=seed)) as sampler:
            if isinstance(sampler, Favouring):
                sampler.session = session
            counts[next_token(session, sampler)] += 1
    return counts


def p_value(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """Chi-square over the likely tokens, the others taken together; 0 where the impossible happened."""
    if counts[expected == 0].any():
        return 0.0
    counts, expected = counts[expected > 0], expected[expected > 0]
    likely = expected * counts.sum() >= 8
    if likely.all():
        return float(stats.chisquare(counts, expected * counts.sum()).pvalue)
    seen = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum()) * counts.sum()
    return float(stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue)


@pytest.mark.many_passes
def test_drafted_text_has_the_models_distribution(tiny: LlamaModel) -> None:
    first = 65
    with Session(tiny, replace(OPTIONS, mtp=False)) as plain:
        expected = probabilities(plain, [*PROMPT, first], HOT.temperature)
    with Session(tiny, OPTIONS) as session:
        assert session.drafter is not None
        drafted = int(np.abs(expected - 0.1).argmin())
        session.drafter.draft = lambda wanted: [[drafted]] * len(wanted)  # type: ignore[method-assign]
        right = third_tokens(session, Sampler, first, 1500)
        session.drop_unfinished(session.slot)
        assert session.stats.n_drafted[0] == 1500
        assert session.stats.n_accepted[0] == right[drafted]
        assert p_value(right, expected) > 0.001
        wrong = third_tokens(session, Favouring, first, 1500)
        assert p_value(wrong, expected) < 1e-6


def draws(model: LlamaModel, n: int, **options: Any) -> list[int]:
    with Session(model, replace(OPTIONS, mtp=False)) as session:
        read_prompt(session, PROMPT)
        with Sampler(model, SamplingOptions(**options), PROMPT) as sampler:
            return [next_token(session, sampler) for _ in range(n)]


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
        read_prompt(session, PROMPT)
        with Sampler(tiny, SamplingOptions(temperature=0, repeat_penalty=10.0), [first]) as sampler:
            assert next_token(session, sampler) != first


def test_grammar_and_bias(tiny: LlamaModel) -> None:
    with Session(tiny, OPTIONS) as session:
        read_prompt(session, PROMPT)
        with Sampler(tiny, SamplingOptions(temperature=1.0, grammar='root ::= [0-9]+ "."')) as sampler:
            said = [next_token(session, sampler) for _ in range(12)]
    assert all(chr_of(token) in "0123456789." or token in (256, 258, 261) for token in said)
    assert draws(tiny, 5, temperature=0, logit_bias={42: 1000.0}) == [42] * 5


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [("root ::= (", "expecting"), ("root ::= digit", "Undefined rule identifier 'digit'"), ("no grammar", "expecting"),
     ('start ::= "a"', "root"), ("root ::= root", "left recursion")],
)  # fmt: skip
def test_a_grammar_that_is_none_is_refused_with_the_reason(
    tiny: LlamaModel, capfd: pytest.CaptureFixture[str], grammar: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=rf"GBNF: .*{reason}"):
        Sampler(tiny, SamplingOptions(grammar=grammar))
    assert capfd.readouterr() == ("", "")


GRAMMAR = "root ::= [A-Za-z0-9 ] [a-z]*"


def first_tokens(session: Session, n: int, **options: Any) -> NDArray[np.int64]:
    """How often each token is drawn first after PROMPT, over `n` seeds."""
    counts = np.zeros(session.model.n_vocab, np.int64)
    read_prompt(session, PROMPT)
    assert session.slot.row is not None
    for seed in range(n):
        with Sampler(session.model, SamplingOptions(seed=seed, **options)) as sampler:
            counts[sampler.sample(session.target, session.slot.row)] += 1
    return counts


def allowed_tokens(model: LlamaModel, grammar: str) -> NDArray[np.bool_]:
    """What llama.cpp's grammar allows first, by asking it about the whole vocabulary."""
    module = api()
    sampler = module.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    rows = (module.llama_token_data * model.n_vocab)(*((i, 1.0, 0.0) for i in range(model.n_vocab)))
    array = module.llama_token_data_array(rows, model.n_vocab, -1, False)
    module.llama_sampler_apply(sampler, ctypes.byref(array))
    module.llama_sampler_free(sampler)
    return np.array([row.logit == 1.0 for row in rows])


def test_a_grammar_leaves_the_odds_of_what_it_allows(tiny: LlamaModel) -> None:
    """Drawing again after a refusal is not applying the grammar first where top-k cuts; both are computed here."""
    allowed = allowed_tokens(tiny, GRAMMAR)
    assert 20 < allowed.sum() < 80
    with Session(tiny, replace(OPTIONS, mtp=False)) as session:
        model = probabilities(session, PROMPT, 2.0)
        within = np.where(allowed, model, 0) / model[allowed].sum()
        counts = first_tokens(session, 2000, temperature=2.0, top_p=1.0, grammar=GRAMMAR)
        assert p_value(counts, within) > 0.001
        assert p_value(counts, np.where(allowed, 1, 0) / allowed.sum()) < 1e-6

        def cut(odds: NDArray[np.float64], k: int) -> NDArray[np.float64]:
            kept = np.where(odds >= np.sort(odds)[-k], odds, 0)
            return np.asarray(kept / kept.sum())

        drawn, again = cut(model, 12), cut(within, 12)
        expected = np.where(allowed, drawn, 0) + drawn[~allowed].sum() * again
        counts = first_tokens(session, 4000, temperature=2.0, top_p=1.0, top_k=12, grammar=GRAMMAR)
        assert p_value(counts, expected) > 0.001
        assert p_value(counts, again) < 1e-6


@pytest.mark.parametrize(("repeat", "frequency", "presence"), [(1.0, 0.0, 0.0), (1.3, 0.5, 0.5)])
def test_greedy_by_grammar_is_the_likeliest_that_is_allowed(
    tiny: LlamaModel, repeat: float, frequency: float, presence: float
) -> None:
    """As llama.cpp's own chain says with the grammar in front, token by token; drafting changes nothing."""
    module, grammar = api(), "root ::= [a-z0-9 ]+"
    with Session(tiny, replace(OPTIONS, mtp=False)) as session:
        chain = module.llama_sampler_chain_init(module.llama_sampler_chain_default_params())
        for part in (
            module.llama_sampler_init_grammar(tiny.vocab, grammar.encode(), b"root"),
            module.llama_sampler_init_penalties(tiny.n_vocab, 64, repeat, frequency, presence),
            module.llama_sampler_init_greedy(),
        ):
            module.llama_sampler_chain_add(chain, part)
        wanted: list[int] = []
        for _ in range(20):
            read_prompt(session, [*PROMPT, *wanted])
            wanted.append(module.llama_sampler_sample(chain, session.target.pointer, session.slot.row))
        module.llama_sampler_free(chain)
    options = SamplingOptions(
        temperature=0, grammar=grammar, repeat_penalty=repeat, frequency_penalty=frequency, presence_penalty=presence
    )
    with Session(tiny, OPTIONS) as session, Sampler(tiny, options) as sampler:
        read_prompt(session, PROMPT)
        assert [next_token(session, sampler) for _ in range(20)] == wanted


def test_what_a_grammar_refuses_is_not_counted(tiny: LlamaModel) -> None:
    """Penalties see only what is said: the refused favourite stays the favourite."""
    strong = {"temperature": 0, "presence_penalty": 2.0, "frequency_penalty": 2.0, "repeat_penalty": 10.0}
    with Session(tiny, replace(OPTIONS, mtp=False)) as session:
        read_prompt(session, PROMPT)
        assert session.slot.row is not None
        logits = session.target.logits(session.slot.row)
        favourite, allowed = int(logits.argmax()), allowed_tokens(tiny, GRAMMAR)
        assert not allowed[favourite]
        with Sampler(tiny, SamplingOptions(**strong, grammar=GRAMMAR)) as sampler:  # type: ignore[arg-type]
            assert allowed[sampler.sample(session.target, session.slot.row)]
            assert sampler._draw(sampler._candidates.of(logits)) == favourite


def test_a_grammar_without_a_way_on_ends_in_a_clear_error(tiny: LlamaModel) -> None:
    with Session(tiny, OPTIONS) as session:
        read_prompt(session, PROMPT)
        never_ends = dict.fromkeys(Vocabulary(tiny).end_tokens, -math.inf)
        for temperature in (0.0, 1.0):
            options = SamplingOptions(temperature=temperature, grammar='root ::= "a"', logit_bias=never_ends)
            with Sampler(tiny, options) as sampler:
                read_prompt(session, PROMPT)
                next_token(session, sampler)
                with pytest.raises(BackendError, match="allows no token"):
                    next_token(session, sampler)


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
