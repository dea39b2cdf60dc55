"""From token bytes to text as it may be shown: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns pieces of UTF-8 into text, holding back what may yet turn out to be the start of a stop string.

    What was handed out is never taken back. Text from a complete stop string on is dropped, wherever token boundaries
    lie.

    Attributes:
        stop_text: the stop string that ended the text; None as long as none did.
    """

    def __init__(self, stop: Sequence[str] = (), *, keeps_stop: bool = False) -> None:
        """`keeps_stop`: the stop string that ends the text is its last part, not left out."""
        self._keeps_stop = keeps_stop
        self._stop = tuple(text for text in stop if text)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stop_text: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self.stop_text is not None

    def push(self, piece: bytes, *, may_stop: bool = True) -> str:
        """The text that may be shown now that `piece` has come; without `may_stop` no stop string can end with it."""
        return self._release(self._decoder.decode(piece), may_stop=may_stop)

    def finish(self) -> str:
        """The rest, when no more will come. Half a character becomes U+FFFD."""
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
    """Length of the longest end of `text` that is the beginning, not the whole, of one of `markers`."""
    longest = min(len(text), max((len(marker) - 1 for marker in markers), default=0))
    for n in range(longest, 0, -1):
        if any(n < len(marker) and text.endswith(marker[:n]) for marker in markers):
            return n
    return 0
