"""Builds an answer from its tokens: the text, the reasoning, and the reason why it ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mimo_gguf.chat.reasoning import THINK_CLOSE, Kind, Piece, ReasoningSplitter
from mimo_gguf.chat.text_stream import TextStream
from mimo_gguf.chat.think_budget import ThinkBudget
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.numbers import is_whole
from mimo_gguf.engine.logprobs import Scores
from mimo_gguf.engine.sampling import Sampler
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.llama.vocabulary import Vocabulary

FinishReason = Literal["stop", "length", "abort"]  # OpenAI's and vLLM's words


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of the model.

    Attributes:
        text: the answer, without reasoning.
        reasoning: the text inside `<think>...</think>`.
        tokens: all token ids, with the end token and those inserted to close the reasoning (`think_budget`).
        finish_reason: "stop" (the model or a stop string ended it), "length" (it was cut off), or "abort".
        stop_reason: for "stop" the stop string or the stop token's id, or None if the model ended the answer; for
            "length" the limit that was reached, "max_tokens" or "window".
        n_prompt: number of tokens of the prompt, of which `stats.n_reused` were in the KV cache already.
        seed: gives the same answer again; None if the answer is greedy.
        stats: counts and times of this answer.
        logprobs: scores of each of `tokens`, if `AnswerOptions.logprobs` requests them. Inserted tokens have the
            log-probability 0.
        prompt_logprobs: scores of each token of the prompt; empty for the first, which nothing predicts.
    """

    text: str
    reasoning: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    n_prompt: int
    seed: int | None
    stats: SessionStats
    logprobs: tuple[Scores, ...] | None = None
    prompt_logprobs: tuple[Scores, ...] | None = None


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """The options of an answer: what ends it, how long it may think, and which scores it has.

    Attributes:
        max_tokens: tokens of reasoning and answer together, at most; None sets no limit but the window.
        stop: texts that end the answer; they are not part of it.
        think_budget: reasoning tokens after which the block is closed, as `ThinkBudget` counts them. 0 closes it at
            once, None sets no limit.
        split_reasoning: read a leading `<think>` block as reasoning.
        min_tokens: tokens that must come before a text of `stop` counts or a token that ends the answer is drawn.
        stop_tokens: further tokens that end the answer.
        ignore_eos: go on after the model's own end tokens.
        include_stop: keep the text or token that ended the answer in its text.
        skip_special: leave control tokens out of the text.
        logprobs: give log-probabilities of each token of the answer and of this number of likeliest ones; -1 for all.
        prompt_logprobs: as `logprobs`, for the prompt, which is then read from its beginning.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think_budget: int | None = None
    split_reasoning: bool = True
    min_tokens: int = 0
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    skip_special: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range or of the wrong kind."""
        _check_whole(self, ("max_tokens", "think_budget"), 0, "give a number of tokens, or None for no limit")
        _check_whole(self, ("logprobs", "prompt_logprobs"), -1, "give a number of tokens, -1 for all, or None")
        if self.min_tokens is None:
            raise UsageError("min_tokens is None", hint="0 sets no minimum")
        _check_whole(self, ("min_tokens",), 0, "give a number of tokens")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UsageError(
                f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}", hint="leave min_tokens out"
            )
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) for text in self.stop):
            raise UsageError(f"stop is {self.stop!r}", hint='give texts: stop=("###",)')
        if not isinstance(self.stop_tokens, tuple) or not all(map(is_whole, self.stop_tokens)):
            raise UsageError(f"stop_tokens is {self.stop_tokens!r}", hint="give token ids: stop_tokens=(5,)")


def _check_whole(options: AnswerOptions, names: Sequence[str], least: int, hint: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and (not is_whole(value) or value < least):
            raise UsageError(f"{name} is {value!r}", hint=hint)


def stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Makes `AnswerOptions.stop` of one text, several, or None.

    Raises:
        UsageError: `stop` is something else.
    """
    if isinstance(stop, str):
        return (stop,)
    if stop is not None and not isinstance(stop, Iterable):
        raise UsageError(f"stop is {stop!r}", hint='give texts: stop=["###"]')
    return tuple(stop or ())


class AnswerText:
    """Turns the tokens of one answer into pieces of text, and notices its end.

    Attributes:
        tokens: all tokens so far, drawn and inserted.
        finish_reason, stop_reason: why it ended, as in `Answer`; "abort" until it has ended.
    """

    def __init__(self, vocabulary: Vocabulary, options: AnswerOptions, opened: str | None = None) -> None:
        """Begins an answer. `opened` is the prompt's text after its own `<think>`; None if it opened no block."""
        self._vocabulary = vocabulary
        self._options = options
        self._budget = None if options.think_budget is None else ThinkBudget(options.think_budget, opened)
        self._stream = TextStream(options.stop, keeps_stop=options.include_stop)
        self._splitter = ReasoningSplitter(inside=opened is not None) if options.split_reasoning else None
        self._texts: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        self.tokens: list[int] = []
        self._n_said = 0  # tokens whose text was given
        self._n_thought: int | None = None  # tokens before the first of the answer's text, once there is one
        self.finish_reason: FinishReason = "abort"
        self.stop_reason: str | int | None = None
        self.ended = False
        self._ends = frozenset(options.stop_tokens)
        if not options.ignore_eos:
            self._ends |= vocabulary.end_tokens
        self._end_at_length()

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end this answer."""
        return self._ends

    @property
    def n_thought(self) -> int:
        """The number of tokens before the first one of the answer's text."""
        return len(self.tokens) if self._n_thought is None else self._n_thought

    def end(self, finish_reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """Ends the answer, for this reason."""
        self.finish_reason, self.stop_reason, self.ended = finish_reason, stop_reason, True

    def text(self, kind: Kind) -> str:
        """The text of one kind so far, as far as it was said."""
        return "".join(self._texts[kind])

    def add(self, token: int) -> list[Piece]:
        """Adds a token. Returns the pieces of text that are certain now."""
        self.note(token)
        return self._say(token)

    def note(self, token: int) -> None:
        """Adds a token whose text nobody waits for: `say` gives the text of all such tokens."""
        self.tokens.append(token)
        if token in self._ends:
            self.end("stop", None if self._is_own_end(token) else token)
        else:
            self._end_at_length()

    @property
    def can_wait(self) -> bool:
        """Whether `note` alone notices the end: there are no texts that end the answer or its reasoning."""
        return not self._options.stop and self._budget is None

    @property
    def n_unsaid(self) -> int:
        """The number of tokens whose text was not given yet."""
        return len(self.tokens) - self._n_said

    def say(self) -> list[Piece]:
        """The text of the tokens that were noted, as far as it is certain now."""
        unsaid = self.tokens[self._n_said :]
        if len(unsaid) > 1 and self.can_wait and self._ends.isdisjoint(unsaid):
            special = not self._options.skip_special
            text = b"".join([self._vocabulary.piece(token, special=special) for token in unsaid])
            if self._is_of_one_kind(text):
                self._n_said += len(unsaid)
                return self._push(text)
        return [piece for token in unsaid for piece in self._say(token)]

    def _is_of_one_kind(self, text: bytes) -> bool:
        """Whether what comes next is all reasoning or all answer, so that it need not be asked which token is what."""
        if self._n_thought is not None:
            return True
        return self._splitter is not None and self._splitter.thinking and THINK_CLOSE[-1].encode() not in text

    def _say(self, token: int) -> list[Piece]:
        self._n_said += 1
        piece = self._vocabulary.piece(token, special=not self._options.skip_special)
        if token not in self._ends:
            return self._push(piece)
        return self._keep(self._split(self._stream.push(piece))) if self._options.include_stop else []

    def _is_own_end(self, token: int) -> bool:
        return token in self._vocabulary.end_tokens and not self._options.ignore_eos

    @property
    def limits_reasoning(self) -> bool:
        """Whether there is a reasoning budget, so that `closing` must be called."""
        return self._budget is not None

    def closing(self, sampler: Sampler) -> list[int]:
        """The tokens to insert now, which close the reasoning block if its budget is used up."""
        if self.ended or self._budget is None:
            return []
        room = None if self._options.max_tokens is None else self._options.max_tokens - len(self.tokens)
        for closing in self._budget.closings:
            if sampler.allows(tokens := self._vocabulary.tokenize(closing)):
                return tokens[:room]
        return []

    def add_inserted(self, closing: Sequence[int]) -> list[Piece]:
        """Adds inserted tokens, up to one that ends the answer. Returns the pieces of text that are certain now."""
        pieces: list[Piece] = []
        for token in closing:
            if not self.ended:
                pieces += self.add(token)
        return pieces

    def finish(self) -> list[Piece]:
        """Returns the pieces that were held back, because no more tokens will come."""
        rest = self._split(self._stream.finish())
        return self._keep(rest + self._splitter.finish() if self._splitter else rest)

    def _push(self, piece: bytes) -> list[Piece]:
        if self._budget is not None:
            self._budget.push(piece)
        text = self._stream.push(piece, may_stop=self._n_said > self._options.min_tokens)
        if self._stream.stopped:
            self.end("stop", self._stream.stop_text)
        return self._keep(self._split(text))

    def _split(self, text: str) -> list[Piece]:
        if self._splitter is not None:
            return self._splitter.push(text)
        return [Piece(Kind.ANSWER, text)] if text else []

    def _end_at_length(self) -> None:
        if self._options.max_tokens is not None and len(self.tokens) >= self._options.max_tokens:
            self.end("length", "max_tokens")

    def _keep(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            self._texts[piece.kind].append(piece.text)
            if self._n_thought is None and piece.kind is Kind.ANSWER:
                self._n_thought = self._n_said - 1
        return pieces
