"""The reasoning budget: how many tokens of reasoning have come, and what closes the block when they are enough."""

from __future__ import annotations

import codecs

from mimo_gguf.chat.reasoning import THINK_CLOSE, THINK_OPEN
from mimo_gguf.chat.text_stream import held_back


class ThinkBudget:
    """Counts the tokens of a reasoning block as they come and says what to put into the answer when `n` have.

    - `n` counts the tokens after the one that completed `<think>`, up to `</think>`. That one counts where it brings
      reasoning with it (`>Let`); where the prompt opened the block, all count. With 0 the block is closed as soon as it
      is open. An answer that begins with anything but white space and `<think>` has no reasoning, and no budget.
    - It is closed after the `n`-th token, or, where that ends within a character, when the character is whole
      (llama.cpp waits for it, too). `</think>` with its line ends is put in; of a tag that has begun, only the rest.
    - What is put in counts as if it had been drawn: for `max_tokens`, which an answer never exceeds, for stop strings,
      for penalties, and for the grammar. Logit bias does not keep it out. A grammar that does not allow it there does:
      the block is then closed after the first token where it does.
    """

    def __init__(self, n: int, opened: str | None = None) -> None:
        """`opened`: what the prompt says after a `<think>` of its own (see `opened_block`)."""
        self._n_left = n
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._before = "" if opened is None else None  # what may yet become the tag; None once that is decided
        self._block = opened  # the end of what the block holds; None outside of it

    def push(self, piece: bytes) -> None:
        """Adds what a token adds to the text."""
        text = self._decoder.decode(piece)
        if self._before is not None:
            self._look_for_block(self._before + text)
        elif self._block is not None:
            self._n_left -= 1
            self._block += text
        if self._block is not None:
            self._block = None if THINK_CLOSE in self._block else self._block[-len(THINK_CLOSE) :]

    def _look_for_block(self, before: str) -> None:
        before = before.lstrip()
        if before.startswith(THINK_OPEN):
            self._before, self._block = None, before[len(THINK_OPEN) :]
            self._n_left -= bool(self._block.strip("\n")) or self._within_character
        else:
            self._before = before if THINK_OPEN.startswith(before) else None

    @property
    def _within_character(self) -> bool:
        return bool(self._decoder.getstate()[0])

    @property
    def closings(self) -> tuple[str, ...]:
        """What closes the block now, the better way first; empty as long as nothing is to be closed."""
        if self._block is None or self._n_left > 0 or self._within_character:
            return ()
        begun = held_back(self._block, (THINK_CLOSE,))
        line_end = "" if begun or self._block.endswith("\n") else "\n"
        closing = line_end + THINK_CLOSE[begun:]
        return f"{closing}\n\n", closing
