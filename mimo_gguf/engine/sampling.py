"""Chooses the next token with llama.cpp's sampler chain, built from plain options."""

from __future__ import annotations

import codecs
import ctypes
import functools
import math
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, Final

import numpy as np

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.core.kinds import check_kind
from mimo_gguf.core.unguessable import unguessable_below
from mimo_gguf.engine.constraints import Constraints
from mimo_gguf.engine.grammar_limits import check_grammar
from mimo_gguf.engine.json_schema import grammar_of_schema
from mimo_gguf.llama.api import Floats, LlamaContext, LlamaModel, api
from mimo_gguf.llama.best import likeliest
from mimo_gguf.llama.log import LOG, kept_from_stderr
from mimo_gguf.llama.vocabulary import Vocabulary

__all__ = ["MAX_SEED", "Sampler", "SamplingOptions", "grammar_of_schema"]

MAX_SEED: Final = 0xFFFFFFFE  # 0xFFFFFFFF means "random" to llama.cpp
_LEAST_TEMPERATURE: Final = 1e-6  # logits divided by much less are no longer finite
_RANGES: Final = (  # those of whole numbers are whole
    ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0), ("typical_p", 0.0, 1.0), ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0), ("repeat_penalty", 0.01, 10.0), ("temperature", 0.0, 100.0),
    ("dry_multiplier", 0.0, 100.0), ("dry_base", 0.0, 100.0), ("top_k", 0, (1 << 31) - 1),
    ("penalty_last_n", 0, 1 << 20), ("dry_allowed_length", 0, 1 << 20), ("dry_last_n", 0, 1 << 20),
    ("seed", 0, MAX_SEED),
)  # fmt: skip
_USUAL: Final = frozenset({int, float})  # numbers for which the abstract kinds need not be asked, which is slow
_HELP: Final = "see: mimo-gguf chat --help"
_GRAMMAR: Final = "a grammar starts with: root ::= ..."
_ENDLESS: Final = "let it end: root ::= ... with nothing after"
_check_grammar = functools.lru_cache(8)(check_grammar)  # many answers have the same grammar
DRY_BREAKERS: Final = ("\n", ":", '"', "*")


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Options of llama.cpp's samplers. The defaults are what Xiaomi recommends for MiMo-7B-RL.

    Attributes:
        temperature: below 0.000001 the answer is greedy: always the likeliest token (after bias, penalties, grammar).
        top_k, top_p, min_p, typical_p: 0, 1, 0 and 1 switch them off.
        repeat_penalty, presence_penalty, frequency_penalty: 1, 0 and 0 switch them off. They count the last
            `penalty_last_n` tokens, prompt included.
        dry_multiplier: 0 switches DRY off.
        penalizes_prompt: whether presence and frequency penalties count the tokens of the prompt.
        seed: the same seed, prompt and options give the same answer; None draws a seed.
        grammar: GBNF that the answer must match.
        logit_bias: token id -> number that is added to its logit.
        allowed_tokens: the only tokens that may come; None allows all.
        bad_tokens: sequences of tokens that may not come.
    """

    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = 4096
    seed: int | None = None
    grammar: str | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    penalizes_prompt: bool = True
    allowed_tokens: tuple[int, ...] | None = None
    bad_tokens: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is out of range or of the wrong kind."""
        for name, low, high in _RANGES:
            value: Any = getattr(self, name)
            if name == "seed" and value is None:
                continue
            if not (type(value) in _USUAL or isinstance(value, Real)) or not low <= value <= high:
                raise UsageError(f"{name} is {value!r}, not between {low} and {high}", hint=_HELP)
            if isinstance(low, int) and type(value) is not int and not isinstance(value, Integral):
                raise UsageError(f"{name} is {value!r}, not a whole number", hint=_HELP)
        biases: Mapping[Any, Any] = self.logit_bias
        check_kind("logit_bias", biases, Mapping, "logit_bias: token id -> number")
        _check_sequences("allowed_tokens", [] if self.allowed_tokens is None else [self.allowed_tokens])
        _check_sequences("bad_tokens", self.bad_tokens)
        for token, bias in biases.items():
            if not isinstance(token, Integral) or not isinstance(bias, Real) or math.isnan(bias):
                raise UsageError(f"a bias of {bias!r} for token {token!r}", hint="logit_bias: token id -> number")
        if self.grammar is not None and (not isinstance(self.grammar, str) or not self.grammar.strip()):
            raise UsageError(f"the grammar is {self.grammar!r}", hint=_GRAMMAR)

    @property
    def greedy(self) -> bool:
        return self.temperature < _LEAST_TEMPERATURE

    @property
    def picks_likeliest(self) -> bool:
        """Whether the token is always the one with the largest raw logit, unless a grammar or rule forbids it."""
        changes = self.logit_bias or self.presence_penalty or self.frequency_penalty or self.dry_multiplier
        return self.greedy and self.repeat_penalty == 1 and not changes

    def seeded(self) -> SamplingOptions:
        """The same options with a seed, drawn if there was none, so that the answer can be repeated."""
        return self if self.seed is not None else replace(self, seed=unguessable_below(MAX_SEED))


class Sampler:
    """llama.cpp's sampler chain for one answer. Every token counts once in penalties, DRY and grammar.

    The order is that of llama.cpp: bias, penalties, DRY, top-k, typical, top-p, min-p, temperature, draw. The grammar
    checks the drawn token. If it forbids that token, it is applied to the whole vocabulary and the chain draws again
    (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/common/sampling.cpp, `grammar_first` = false). Only what is
    forbidden changes: without truncation the odds among the allowed tokens are the model's. Applying the grammar to
    the whole vocabulary of 151680 for every token would cost 30 to 60 ms each.

    Two things that llama.cpp's grammar allows are refused here: bytes that are not UTF-8 (it reads two bytes that
    decode to a quotation mark as one), and control tokens, whose names it reads as text.
    """

    def __init__(
        self,
        model: LlamaModel,
        options: SamplingOptions,
        history: Sequence[int] = (),
        *,
        at_first: Collection[int] = (),
        n_first: int = 0,
    ) -> None:
        """Makes the chain.

        Args:
            history: the tokens of the prompt, which count in penalties and DRY.
            at_first: tokens that may not be among the first `n_first` of the answer.

        Raises:
            UsageError: the grammar is not GBNF, or a bias or a rule names a token that the model does not have.
        """
        module = api()
        self.options = options = options.seeded()
        self.greedy, self._picks_likeliest = options.greedy, options.picks_likeliest  # kept: used for every token
        self._closed = False
        self._model = model  # a grammar uses its vocabulary
        self._counting: list[Any] = []  # the samplers that must also count tokens the chain did not draw
        self._chain = module.llama_sampler_chain_init(module.llama_sampler_chain_default_params())
        self._finalizers = [weakref.finalize(self, module.llama_sampler_free, self._chain)]
        self._grammar: Any = None
        self._constraints: Constraints | None = None
        if options.allowed_tokens is not None or options.bad_tokens or (at_first and n_first):
            self._constraints = Constraints(
                model.n_vocab,
                allowed=options.allowed_tokens,
                bad=options.bad_tokens,
                at_first=at_first,
                n_first=n_first,
            )
        self._sample, self._apply, self._accept = (
            module.llama_sampler_sample, module.llama_sampler_apply, module.llama_sampler_accept,
        )  # fmt: skip
        try:
            self._build(module, model, history)
        except BaseException:
            self.close()
            raise
        # Whether a token is the likeliest one, whatever came before, as long as the sampler is open.
        self._is_plain = self._picks_likeliest and self._grammar is None and self._constraints is None

    def _build(self, module: Any, model: LlamaModel, history: Sequence[int]) -> None:
        options = self.options
        self._add_biases(module, model)
        if options.grammar is not None:
            self._grammar = _read_grammar(module, model, options.grammar)
            self._finalizers.append(weakref.finalize(self, module.llama_sampler_free, self._grammar))
        if options.grammar is not None or self._constraints is not None:
            self._candidates = _Candidates(model.n_vocab)
            self._vocabulary = Vocabulary(model)
            self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._add_penalties(module, model, history[-options.penalty_last_n :] if options.penalty_last_n else ())
        if options.dry_multiplier:
            breakers = (ctypes.c_char_p * len(DRY_BREAKERS))(*(text.encode() for text in DRY_BREAKERS))
            dry = module.llama_sampler_init_dry(
                model.vocab, options.dry_multiplier, options.dry_base, options.dry_allowed_length,
                options.dry_last_n, breakers, len(breakers),
            )  # fmt: skip
            self._add_with_history(dry, history[-options.dry_last_n :])
        if options.greedy:
            self._add(module.llama_sampler_init_greedy())
            return
        if options.top_k > 0:
            self._add(module.llama_sampler_init_top_k(options.top_k))
        if options.typical_p < 1:
            self._add(module.llama_sampler_init_typical(options.typical_p, 1))
        if options.top_p < 1:
            self._add(module.llama_sampler_init_top_p(options.top_p, 1))
        if options.min_p > 0:
            self._add(module.llama_sampler_init_min_p(options.min_p, 1))
        self._add(module.llama_sampler_init_temp(options.temperature))
        self._add(module.llama_sampler_init_dist(options.seed))

    def _add_biases(self, module: Any, model: LlamaModel) -> None:
        biases = self.options.logit_bias
        if unknown := [token for token in biases if not 0 <= token < model.n_vocab]:
            raise UsageError(f"a bias for token {unknown[0]}", hint=f"tokens are 0 to {model.n_vocab - 1}")
        if biases:
            pairs = (module.llama_logit_bias * len(biases))(*biases.items())
            self._add(module.llama_sampler_init_logit_bias(model.n_vocab, len(pairs), pairs))

    def _add_penalties(self, module: Any, model: LlamaModel, history: Sequence[int]) -> None:
        options = self.options
        repeat, frequency, presence = options.repeat_penalty, options.frequency_penalty, options.presence_penalty
        kinds: list[tuple[float, float, float, Sequence[int]]] = [(repeat, frequency, presence, history)]
        if not options.penalizes_prompt:
            kinds = [(repeat, 0.0, 0.0, history), (1.0, frequency, presence, ())]
        for *strengths, before in kinds:
            penalties = module.llama_sampler_init_penalties(model.n_vocab, options.penalty_last_n, *strengths)
            self._add_with_history(penalties, before)

    def _add(self, sampler: Any) -> None:
        if not sampler:
            raise BackendError("llama.cpp could not make a sampler", hint="run with --verbose for its log")
        api().llama_sampler_chain_add(self._chain, sampler)

    def _add_with_history(self, sampler: Any, history: Sequence[int]) -> None:
        self._add(sampler)
        self._counting.append(sampler)
        for token in history:
            self._accept(sampler, token)

    def note(self, token: int) -> None:
        """Notes a token that was inserted into the answer, so that penalties, DRY and grammar count it.

        Raises:
            BackendError: the grammar does not allow it (check with `allows` before).
            UsageError: the sampler or its model was closed.
        """
        self._check_open()
        if self._grammar is not None:
            self._accept_by_grammar(self._grammar, token)
            self._decoder.decode(self._vocabulary.piece(token))
        for sampler in self._counting:
            self._accept(sampler, token)
        if self._constraints is not None:
            self._constraints.note(token)

    def allows(self, tokens: Sequence[int]) -> bool:
        """Whether the grammar, if there is one, allows `tokens` here, one after the other."""
        self._check_open()
        if self._grammar is None:
            return True
        module = api()
        grammar = module.llama_sampler_clone(self._grammar)
        try:
            for token in tokens:
                self._accept_by_grammar(grammar, token)
        except BackendError:
            return False
        finally:
            module.llama_sampler_free(grammar)
        return True

    def sample(self, context: LlamaContext, row: int) -> int:
        """Draws the next token from row `row` of the last decode's logits.

        Raises:
            BackendError: the grammar or the constraints allow no token.
            UsageError: the sampler or the model has been closed.
        """
        if self._is_plain:  # 8 times as fast as llama.cpp's sampler, which lists the vocabulary first
            return likeliest(context, row)
        self._check_open()
        if self._grammar is not None or self._constraints is not None:
            return self._sample_within(context, row)
        return int(self._sample(self._chain, context.pointer, row))

    def _sample_within(self, context: LlamaContext, row: int) -> int:
        """Draws a token that constraints and grammar allow."""
        logits, constraints = context.logits(row), self._constraints
        if constraints is not None and constraints.are_active:
            logits = constraints.masked(logits)
        if self._grammar is not None:
            token = self._sample_by_grammar(logits)
        elif self._picks_likeliest:
            token = int(logits.argmax())
        else:
            token = self._draw(self._candidates.of(logits))
            self._accept(self._chain, token)
        if constraints is not None:
            constraints.note(token)
        return token

    def _sample_by_grammar(self, logits: Floats) -> int:
        plain = self._picks_likeliest
        token = int(logits.argmax()) if plain else self._draw(self._candidates.of(logits))
        if not (self._is_allowed(self._grammar, token) and self._is_text(token)):
            token = self._draw_allowed(logits)
        self._accept_by_grammar(self._grammar, token)
        self._decoder.decode(self._vocabulary.piece(token))
        self._accept(self._chain, token)
        return token

    def _draw_allowed(self, logits: Floats) -> int:
        """Draws a token that the grammar allows and that is text; one that it forbids if no such token is left."""
        refused: set[int] = set()
        while True:
            candidates = self._candidates.of(logits, without=refused)
            self._apply(self._grammar, candidates)
            token = self._draw(candidates)
            if token in refused:
                raise BackendError("the grammar allows no token here", hint=_ENDLESS)
            if self._is_text(token) or not self._is_allowed(self._grammar, token):
                return token
            refused.add(token)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the sampler has been closed", hint="make another")

    def _is_text(self, token: int) -> bool:
        """Whether a token continues the text with valid UTF-8, or ends the answer."""
        piece = self._vocabulary.piece(token)
        if not piece:
            return token in self._vocabulary.end_tokens
        state = self._decoder.getstate()
        try:
            self._decoder.decode(piece)
        except UnicodeDecodeError:
            return False
        finally:
            self._decoder.setstate(state)
        return True

    def _draw(self, candidates: Any) -> int:
        self._apply(self._chain, candidates)
        array = candidates.contents
        return int(array.data[array.selected].id)

    def _accept_by_grammar(self, grammar: Any, token: int) -> None:
        if not self._is_allowed(grammar, token):  # accepting such a token would make llama.cpp abort
            raise BackendError("the grammar allows no token here", hint=_ENDLESS)
        self._accept(grammar, token)

    def _is_allowed(self, grammar: Any, token: int) -> bool:
        module = api()
        _ = self._model.pointer  # raises UsageError if the model was closed
        one = module.llama_token_data(token, 1.0, 0.0)
        self._apply(grammar, ctypes.pointer(module.llama_token_data_array(ctypes.pointer(one), 1, -1, False)))
        return bool(one.logit != -math.inf)

    def close(self) -> None:
        """Frees the chain and the grammar."""
        self._closed, self._is_plain = True, False
        for finalizer in self._finalizers:
            finalizer()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_sequences(name: str, sequences: Any) -> None:
    hint = f"{name} holds token ids"
    check_kind(name, sequences, Sequence, hint)
    for each in sequences:
        check_kind(name, each, Sequence, hint)
        for token in each:
            check_kind(name, token, Integral, hint)


def _read_grammar(module: Any, model: LlamaModel, grammar: str) -> Any:
    """Makes llama.cpp's sampler of a grammar. Raises UsageError, with the parser's reason, if it is not valid."""
    _check_grammar(grammar)
    since = LOG.mark
    with kept_from_stderr() as said:
        sampler = module.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    if sampler:
        return sampler
    reason = said[0].rpartition("error parsing grammar: ")[2] if said else LOG.reason(since)
    raise UsageError(f"the grammar is not valid GBNF: {reason[:120]}", hint=_GRAMMAR)


class _Candidates:
    """The whole vocabulary as an array for llama.cpp's samplers, which reorder and shorten it each time.

    A row is a llama_token_data: id, logit and p, 4 bytes each.
    """

    def __init__(self, n_vocab: int) -> None:
        module = api()
        self._fresh = np.zeros((n_vocab, 3), np.int32)
        self._fresh[:, 0] = np.arange(n_vocab)
        self._rows = self._fresh.copy()
        self._logits = self._rows.view(np.float32)[:, 1]
        self._data = self._rows.ctypes.data_as(ctypes.POINTER(module.llama_token_data))
        self._array = module.llama_token_data_array()

    def of(self, logits: Floats, without: Iterable[int] = ()) -> Any:
        """A pointer to a llama_token_data_array, valid until the next call.

        Args:
            logits: shape (n_vocab,).
            without: tokens that get minus infinity.
        """
        self._rows[:] = self._fresh
        self._logits[:] = logits
        self._logits[list(without)] = -math.inf
        self._array.data, self._array.size = self._data, len(self._rows)
        self._array.selected, self._array.sorted = -1, False
        return ctypes.pointer(self._array)
