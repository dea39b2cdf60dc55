"""An answer in the making: what the tokens say, what is reasoning, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from mimo_gguf.chat.reasoning import Kind, Piece, ReasoningSplitter
from mimo_gguf.chat.text_stream import TextStream
from mimo_gguf.chat.think_budget import ThinkBudget
from mimo_gguf.core.errors import UsageError
from mimo_gguf.engine.sampling import Sampler
from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.llama.vocabulary import Vocabulary

FinishReason = Literal["stop", "length", "abort"]  # OpenAI's and vLLM's words


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer, without reasoning.
        reasoning: what stood inside `<think>...</think>`.
        tokens: ids as generated, the end token included, and those put in to close the reasoning (`think_budget`).
        finish_reason: "stop" (the model ended it, or a stop string), "length" (it was cut off), or "abort".
        stop_reason: for "stop" the stop string, or None if the model ended the answer; for "length" what was used up,
            "max_tokens" or "window".
        n_prompt: tokens of the prompt; stats.n_reused of them needed no evaluation.
        seed: give it again to get the same answer again; None when greedy.
        stats: counts and times of this answer alone.
    """

    text: str
    reasoning: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | None
    n_prompt: int
    seed: int | None
    stats: SessionStats


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What ends an answer, and how long it may think.

    Attributes:
        max_tokens: tokens of reasoning and answer together; None lets it go on until the model ends it or the window is
            full.
        stop: texts that end the answer; they are not part of it.
        think_budget: reasoning tokens after which the block is closed and the answer asked for, as `ThinkBudget` counts
            them; 0 closes it at once; None: no limit.
        split_reasoning: read a leading `<think>` block as reasoning.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think_budget: int | None = None
    split_reasoning: bool = True

    def __post_init__(self) -> None:
        """Raises UsageError for values that make no sense."""
        for name in ("max_tokens", "think_budget"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 0):
                raise UsageError(f"{name} is {value!r}", hint="give a number of tokens, or None for no limit")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) for text in self.stop):
            raise UsageError(f"stop is {self.stop!r}", hint='give texts: stop=("###",)')


def stop_texts(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """`AnswerOptions.stop` from what people write: one text, several, or none."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


class AnswerText:
    """Turns the tokens of one answer into pieces of text, and says when it is over.

    Attributes:
        tokens: all that came, those of `closing` too.
        finish_reason, stop_reason: why it ended, as in `Answer`; "abort" as long as nothing else did.
    """

    def __init__(self, vocabulary: Vocabulary, options: AnswerOptions, opened: str | None = None) -> None:
        """`opened`: what the prompt says after a `<think>` of its own, None where it opened no block."""
        self._vocabulary = vocabulary
        self._options = options
        self._budget = None if options.think_budget is None else ThinkBudget(options.think_budget, opened)
        self._stream = TextStream(options.stop)
        self._splitter = ReasoningSplitter(inside=opened is not None) if options.split_reasoning else None
        self._texts: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        self.tokens: list[int] = []
        self.finish_reason: FinishReason = "abort"
        self.stop_reason: str | None = None
        self.ended = False
        self._end_at_length()

    def end(self, finish_reason: FinishReason, stop_reason: str | None = None) -> None:
        """Notes that nothing more will come, and why."""
        self.finish_reason, self.stop_reason, self.ended = finish_reason, stop_reason, True

    def text(self, kind: Kind) -> str:
        """What has come so far of one kind."""
        return "".join(self._texts[kind])

    def add(self, token: int) -> list[Piece]:
        """Adds a token that was drawn; the pieces of text that are certain now."""
        self.tokens.append(token)
        if token in self._vocabulary.end_tokens:
            self.end("stop")
            return []
        return self._push(self._vocabulary.piece(token))

    @property
    def limits_reasoning(self) -> bool:
        """Whether there is a reasoning budget, so that `closing` has to be asked."""
        return self._budget is not None

    def closing(self, sampler: Sampler) -> list[int]:
        """Tokens that are to be put into the answer now: they close reasoning that has used up its budget."""
        if self.ended or self._budget is None:
            return []
        room = None if self._options.max_tokens is None else self._options.max_tokens - len(self.tokens)
        for closing in self._budget.closings:
            if sampler.allows(tokens := self._vocabulary.tokenize(closing)):
                return tokens[:room]
        return []

    def add_inserted(self, closing: Sequence[int]) -> list[Piece]:
        """Adds tokens that were put in, up to one that ends the answer; the pieces of text that come of them."""
        pieces: list[Piece] = []
        for token in closing:
            if not self.ended:
                pieces += self.add(token)
        return pieces

    def finish(self) -> list[Piece]:
        """What was held back, when no more will come."""
        rest = self._stream.finish()
        return self._keep(self._splitter.push(rest) + self._splitter.finish() if self._splitter else _plain(rest))

    def _push(self, piece: bytes) -> list[Piece]:
        if self._budget is not None:
            self._budget.push(piece)
        text = self._stream.push(piece)
        if self._stream.stopped:
            self.end("stop", self._stream.stop_text)
        else:
            self._end_at_length()
        return self._keep(self._splitter.push(text) if self._splitter else _plain(text))

    def _end_at_length(self) -> None:
        if self._options.max_tokens is not None and len(self.tokens) >= self._options.max_tokens:
            self.end("length", "max_tokens")

    def _keep(self, pieces: Sequence[Piece]) -> list[Piece]:
        kept = [piece for piece in pieces if piece.text]
        for piece in kept:
            self._texts[piece.kind].append(piece.text)
        return kept


def _plain(text: str) -> list[Piece]:
    return [Piece(Kind.ANSWER, text)]
