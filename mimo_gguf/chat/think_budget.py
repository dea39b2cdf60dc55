"""The reasoning budget: counts tokens of reasoning, and closes the block if the budget is used up."""

from __future__ import annotations

import codecs

from mimo_gguf.chat.reasoning import THINK_CLOSE, THINK_OPEN
from mimo_gguf.chat.text_stream import held_back


class ThinkBudget:
    """Counts the tokens of a reasoning block, and gives the text that closes the block after `n` of them.

    - The count begins after the token that completed `<think>` and ends before `</think>`. The former counts, too, if
      it contains reasoning (`>Let`). If the prompt opened the block, all tokens count. With 0 the block is closed as
      soon as it is open. An answer that does not begin with `<think>`, white space aside, has no budget.
    - The block is closed after the `n`-th token or, if that ends inside a character, when the character is complete
      (as in llama.cpp). The inserted text is `</think>` with its line ends, or the rest of a tag that has begun.
    - Inserted tokens count like drawn ones: for `max_tokens`, which an answer never exceeds, for stop strings, for
      penalties, and for the grammar. A logit bias cannot prevent them, but a grammar can: the block is then closed at
      the first place where the grammar allows it.
    """

    def __init__(self, n: int, opened: str | None = None) -> None:
        """Begins an answer with a budget of `n` tokens. `opened` is what `opened_block` gives for the prompt."""
        self._n_left = n
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._before = "" if opened is None else None  # text that may become the tag; None as soon as that is decided
        self._block = opened  # the end of the block's text; None outside of the block

    def push(self, piece: bytes) -> None:
        """Adds the bytes of one token."""
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
        """The texts that can close the block now, the best first; empty if the block must not be closed now."""
        if self._block is None or self._n_left > 0 or self._within_character:
            return ()
        begun = held_back(self._block, (THINK_CLOSE,))
        line_end = "" if begun or self._block.endswith("\n") else "\n"
        closing = line_end + THINK_CLOSE[begun:]
        return f"{closing}\n\n", closing
