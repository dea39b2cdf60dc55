"""Splits a text into reasoning and answer. MiMo writes `<think>...</think>` as ordinary text, not as tokens."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from mimo_gguf.chat.text_stream import held_back

THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"


class Kind(enum.Enum):
    """The kind of a piece of text."""

    REASONING = "reasoning"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of streamed text of one kind."""

    kind: Kind
    text: str


def opened_block(prompt: str) -> str | None:
    """The white space after the `<think>` with which a prompt ends, as with some templates; None without one."""
    _, marker, after = prompt.rpartition(THINK_OPEN)
    return after if marker and not after.strip() else None


class ReasoningSplitter:
    """Sorts streamed text into reasoning and answer. Markers may be split over pieces in any way.

    A block is reasoning only if the text begins with it, after white space: `<think>` in the middle of an answer is
    part of the answer. A block that never closes is reasoning to the end. The markers, even if cut off, and the blank
    lines around them are not part of either text.
    """

    def __init__(self, *, inside: bool = False) -> None:
        """Begins a text; with `inside`, in a block that the prompt has opened."""
        self._kind: Kind | None = Kind.REASONING if inside else None
        self._held = ""
        self._at_start = True

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside an open block."""
        return self._kind is Kind.REASONING

    def push(self, text: str) -> list[Piece]:
        """Adds text. Returns the pieces that are certain now."""
        if self._kind is Kind.ANSWER and not self._at_start:  # from here on nothing is held
            return [Piece(Kind.ANSWER, text)] if text else []
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """Returns the pieces that were held back, because no more text will come."""
        if self._kind is None:
            self._kind, self._at_start = Kind.ANSWER, False
        rest, self._held = self._held, ""
        if not self.thinking:
            return self._as_pieces(rest)
        begun = held_back(rest, (THINK_CLOSE,))
        if begun > 1:  # a marker that was cut off after `</` or later; `<` alone may be text
            rest = rest[:-begun]
        return self._as_pieces(rest.rstrip("\n"))

    def _step(self, pieces: list[Piece]) -> bool:
        """Moves text that is certain to `pieces`. Returns whether there may be more to do."""
        if self._kind is None:
            return self._decide()
        if self._kind is Kind.ANSWER:
            rest, self._held = self._held, ""
            pieces += self._as_pieces(rest)
            return False
        before, marker, after = self._held.partition(THINK_CLOSE)
        if marker:
            pieces += self._as_pieces(before.rstrip("\n"))
            self._kind, self._held, self._at_start = Kind.ANSWER, after, True
            return True
        # If a marker comes next, the line ends before it belong to it.
        keep = held_back(self._held, (THINK_CLOSE,))
        body = self._held[: len(self._held) - keep]
        keep += len(body) - len(body.rstrip("\n"))
        pieces += self._as_pieces(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _decide(self) -> bool:
        """Decides whether the text begins with a block. Returns False while too little of it has come."""
        seen = self._held.lstrip()
        if seen.startswith(THINK_OPEN):
            self._kind, self._held = Kind.REASONING, seen[len(THINK_OPEN) :]
        elif THINK_OPEN.startswith(seen):
            return False
        else:
            self._kind, self._at_start = Kind.ANSWER, False  # keep the white space before a plain answer
        return True

    def _as_pieces(self, text: str) -> list[Piece]:
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return []
        self._at_start = False
        return [Piece(self._kind or Kind.ANSWER, text)]


def split_reasoning(text: str) -> tuple[str, str]:
    """Splits a whole text into (reasoning, answer)."""
    splitter = ReasoningSplitter()
    pieces = splitter.push(text) + splitter.finish()
    return tuple("".join(piece.text for piece in pieces if piece.kind is kind) for kind in Kind)  # type: ignore[return-value]
