"""How much of the waiting prompts a pass reads while others draw tokens, so that their next token comes soon.

This is pure arithmetic on what the session measures. A pass of n tokens takes about a + b * n seconds. The number is
sought at which it takes as long as allowed: from a pass of n tokens in t seconds, the next has n * (allowed / t). Each
such step comes nearer to it from any beginning, because a and b are not negative.
"""

from __future__ import annotations

import collections
import statistics
from typing import Final

SMALLEST: Final = 16  # tokens: with fewer a pass costs nearly as much, so a prompt would be read far more slowly
_UNKNOWN: Final = 64  # tokens of the first such pass, if nothing was measured yet
_PASSES: Final = 3  # of which the median counts, so that one slow pass (a page fault) changes nothing


class Pace:
    """Decides the room for prompts from the passes so far."""

    def __init__(self, allowed_s: float) -> None:
        """Makes the pace for passes that may take `allowed_s` seconds; 0 sets no limit."""
        self._allowed_s = allowed_s
        self._tokens_per_s: collections.deque[float] = collections.deque(maxlen=_PASSES)

    def room(self, n_drawing: int, most: int) -> int:
        """The number of tokens of prompts that the next pass may read.

        Args:
            n_drawing: tokens of conversations that draw; without any, nobody waits.
            most: the number that the batch has room for.
        """
        if not n_drawing or not self._allowed_s:
            return most
        if not self._tokens_per_s:
            return min(most, _UNKNOWN)
        fitting = int(statistics.median(self._tokens_per_s) * self._allowed_s) - n_drawing
        return min(most, max(fitting, SMALLEST))

    def record(self, n_tokens: int, seconds: float) -> None:
        """Records a pass that read a prompt, of so many tokens in all."""
        if n_tokens >= SMALLEST:
            self._tokens_per_s.append(n_tokens / max(seconds, 1e-9))
