"""Splitting an answer into reasoning and reply. MiMo writes `<think>...</think>` as ordinary text, not as tokens."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from mimo_gguf.chat.text_stream import held_back

THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"


class Kind(enum.Enum):
    """What a stretch of text is."""

    REASONING = "reasoning"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of streamed text of one kind."""

    kind: Kind
    text: str


def opened_block(prompt: str) -> str | None:
    """What a prompt that ends in an open block (some templates' do) says after `<think>`: white space; else None."""
    _, marker, after = prompt.rpartition(THINK_OPEN)
    return after if marker and not after.strip() else None


class ReasoningSplitter:
    """Sorts streamed text into reasoning and answer, with markers split over pieces in any way.

    A block is read as reasoning only where a text begins with it (white space aside): `<think>` in the middle of an
    answer is an answer about it. A block that never closes is reasoning to the end; text without one is all answer.
    The markers, one that is cut off too, and the blank lines around them are not part of either text.
    """

    def __init__(self, *, inside: bool = False) -> None:
        """`inside`: the prompt has opened the block already."""
        self._kind: Kind | None = Kind.REASONING if inside else None
        self._held = ""
        self._at_start = True

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside an open block."""
        return self._kind is Kind.REASONING

    def push(self, text: str) -> list[Piece]:
        """The pieces that are certain now."""
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """The rest, when no more will come."""
        if self._kind is None:
            self._kind, self._at_start = Kind.ANSWER, False
        rest, self._held = self._held, ""
        if not self.thinking:
            return self._as_pieces(rest)
        begun = held_back(rest, (THINK_CLOSE,))
        if begun > 1:  # `</` and more of a marker that was cut off; `<` alone may be anything
            rest = rest[:-begun]
        return self._as_pieces(rest.rstrip("\n"))

    def _step(self, pieces: list[Piece]) -> bool:
        """Moves certain text from the held to `pieces`; true when there may be more to do."""
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
        # Line ends before a marker that may follow belong to the marker.
        keep = held_back(self._held, (THINK_CLOSE,))
        body = self._held[: len(self._held) - keep]
        keep += len(body) - len(body.rstrip("\n"))
        pieces += self._as_pieces(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _decide(self) -> bool:
        """Whether the text begins with a block: known once enough of it has come."""
        seen = self._held.lstrip()
        if seen.startswith(THINK_OPEN):
            self._kind, self._held = Kind.REASONING, seen[len(THINK_OPEN) :]
        elif THINK_OPEN.startswith(seen):
            return False
        else:
            self._kind, self._at_start = Kind.ANSWER, False  # white space before a plain answer is its own
        return True

    def _as_pieces(self, text: str) -> list[Piece]:
        if self._at_start:
            text = text.lstrip("\n")
        if not text:
            return []
        self._at_start = False
        return [Piece(self._kind or Kind.ANSWER, text)]


def split_reasoning(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a whole text."""
    splitter = ReasoningSplitter()
    pieces = splitter.push(text) + splitter.finish()
    return tuple("".join(piece.text for piece in pieces if piece.kind is kind) for kind in Kind)  # type: ignore[return-value]
