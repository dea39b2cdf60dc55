"""An answer in the making: what the tokens say, what is reasoning, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mimo_gguf.runtime.reasoning import THINK_CLOSE, Kind, Piece, ReasoningSplitter
from mimo_gguf.runtime.session_stats import SessionStats
from mimo_gguf.runtime.text_stream import TextStream
from mimo_gguf.runtime.vocabulary import Vocabulary

FinishReason = Literal["stop", "stop_string", "length", "context", "cancelled"]
_CLOSING = f"\n{THINK_CLOSE}\n\n"  # what ends the reasoning when its budget is used up


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer, without reasoning.
        reasoning: what stood inside `<think>...</think>`.
        tokens: ids as generated, the end token included.
        finish_reason: "stop" (the model ended), "stop_string", "length" (max_tokens), "context" (the window is full),
            or "cancelled".
        n_prompt: tokens of the prompt; stats.n_reused of them needed no evaluation.
        seed: give it again to get the same answer again; None when greedy.
        stats: counts and times of this answer alone.
    """

    text: str
    reasoning: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    n_prompt: int
    seed: int | None
    stats: SessionStats


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What ends an answer, and how long it may think.

    Attributes:
        max_tokens: None lets it go on until the model ends it or the window is full.
        stop: texts that end the answer; they are not part of it.
        think_budget: reasoning tokens after which the block is closed and the answer asked for; None: no limit.
        split_reasoning: read a leading `<think>` block as reasoning.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think_budget: int | None = None
    split_reasoning: bool = True


class AnswerText:
    """Turns the tokens of one answer into pieces of text, and says when it is over.

    Attributes:
        tokens: all that came, those of `closing` too.
        reason: why it ended; "cancelled" as long as nothing else did.
    """

    def __init__(self, vocabulary: Vocabulary, options: AnswerOptions) -> None:
        self._vocabulary = vocabulary
        self._options = options
        self._budget = options.think_budget
        self._stream = TextStream(options.stop)
        self._splitter = ReasoningSplitter() if options.split_reasoning else None
        self._texts: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        self.tokens: list[int] = []
        self.reason: FinishReason = "cancelled"
        self.ended = False
        self._end_at_length()

    def end(self, reason: FinishReason) -> None:
        """Nothing more will come."""
        self.reason, self.ended = reason, True

    def text(self, kind: Kind) -> str:
        """What has come so far of one kind."""
        return "".join(self._texts[kind])

    def take(self, token: int) -> list[Piece]:
        """The pieces that are certain once `token` was drawn."""
        self.tokens.append(token)
        if token in self._vocabulary.end_tokens:
            self.end("stop")
            return []
        return self._push(self._vocabulary.piece(token))

    def closing(self) -> list[int]:
        """Tokens that are to be put into the answer now: they close reasoning that has used up its budget."""
        if self.ended or self._budget is None or self._splitter is None:
            return []
        if not self._splitter.thinking or len(self.tokens) < self._budget:
            return []
        self._budget = None
        return self._vocabulary.tokenize(_CLOSING)

    def put(self, closing: Sequence[int]) -> list[Piece]:
        """The pieces that come of tokens put in."""
        self.tokens += closing
        return self._push(_CLOSING.encode())

    def finish(self) -> list[Piece]:
        """What was held back, when no more will come."""
        rest = self._stream.finish()
        return self._keep(self._splitter.push(rest) + self._splitter.finish() if self._splitter else _plain(rest))

    def _push(self, piece: bytes) -> list[Piece]:
        text = self._stream.push(piece)
        if self._stream.stopped:
            self.end("stop_string")
        else:
            self._end_at_length()
        return self._keep(self._splitter.push(text) if self._splitter else _plain(text))

    def _end_at_length(self) -> None:
        if self._options.max_tokens is not None and len(self.tokens) >= self._options.max_tokens:
            self.end("length")

    def _keep(self, pieces: Sequence[Piece]) -> list[Piece]:
        kept = [piece for piece in pieces if piece.text]
        for piece in kept:
            self._texts[piece.kind].append(piece.text)
        return kept


def _plain(text: str) -> list[Piece]:
    return [Piece(Kind.ANSWER, text)]
