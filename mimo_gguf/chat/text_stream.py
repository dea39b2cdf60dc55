"""Turns token bytes into text that can be shown: whole characters, and no part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns pieces of UTF-8 into text, and holds back what may be the beginning of a stop string.

    Text from a stop string on is dropped, even if the stop string begins and ends inside tokens.

    Attributes:
        stop_text: the stop string that ended the text; None until one has.
    """

    def __init__(self, stop: Sequence[str] = (), *, keeps_stop: bool = False) -> None:
        """Begins a text that one of `stop` ends; with `keeps_stop` the stop string is its last part."""
        self._keeps_stop = keeps_stop
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_whole = True  # whether the pieces so far end with a whole character
        self._held = ""
        self.stop_text: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self.stop_text is not None

    def push(self, piece: bytes, *, may_stop: bool = True) -> str:
        """Adds a piece. Returns the text that can be shown now. Without `may_stop` no stop string ends the text."""
        if self._is_whole and piece.isascii():  # most are, and the decoder costs more than the rest
            text = piece.decode("ascii")
        else:
            text = self._decoder.decode(piece)
            self._is_whole = not self._decoder.getstate()[0]
        return self._release(text, may_stop=may_stop) if self._stop else text

    def finish(self) -> str:
        """Returns the text that was held back, because no more will come. An incomplete character becomes U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _release(self, text: str, *, may_stop: bool = True) -> str:
        if self.stopped:
            return ""
        held, released = self._held + text, ""
        while found := min(((at, stop) for stop in self._stop if (at := held.find(stop)) >= 0), default=None):
            at, stop = found
            if may_stop:
                self.stop_text, self._held = stop, ""
                return released + held[: at + len(stop) if self._keeps_stop else at]
            released, held = released + held[: at + len(stop)], held[at + len(stop) :]
        keep = held_back(held, self._stop)
        self._held = held[len(held) - keep :]
        return released + held[: len(held) - keep]


def held_back(text: str, markers: Sequence[str]) -> int:
    """The length of the longest end of `text` with which one of `markers` begins, but not ends."""
    longest = min(len(text), max((len(marker) - 1 for marker in markers), default=0))
    for n in range(longest, 0, -1):
        if any(n < len(marker) and text.endswith(marker[:n]) for marker in markers):
            return n
    return 0
