"""Which tokens may not come next: the same ones always, some only at first, or the last of a sequence."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.llama.api import Floats


class Constraints:
    """Rules over the tokens of one answer; whatever comes is noted, drawn or put in."""

    def __init__(
        self,
        n_vocab: int,
        *,
        allowed: Collection[int] | None = None,
        bad: Sequence[Sequence[int]] = (),
        at_first: Collection[int] = (),
        n_first: int = 0,
    ) -> None:
        """Rules for an answer that has not begun.

        Args:
            allowed: the only tokens that may come; None: all.
            bad: sequences that may not come: the last token of one is forbidden after its others.
            at_first: tokens that may not be among the first `n_first`.

        Raises:
            UsageError: the model has no such token.
        """
        _check_tokens([*(allowed or ()), *(token for each in bad for token in each)], n_vocab)
        self._others: np.ndarray[tuple[int], np.dtype[np.intp]] | None = None
        if allowed is not None:
            self._others = np.setdiff1d(np.arange(n_vocab), list(allowed))
        self._bad = [tuple(each) for each in bad if each]
        self._longest = max(map(len, self._bad), default=1)
        self._at_first, self._n_first = list(at_first), n_first
        self._n_tokens = 0
        self._last: list[int] = []  # as many as a bad sequence can look back on

    @property
    def are_asked(self) -> bool:
        """Whether anything is forbidden here."""
        return self._others is not None or self._n_tokens < self._n_first or bool(self._forbidden_here())

    def note(self, token: int) -> None:
        """Counts a token of the answer."""
        self._n_tokens += 1
        self._last = [*self._last, token][-self._longest :]

    def applied(self, logits: Floats) -> Floats:
        """A copy of `logits` in which what is forbidden is impossible.

        Raises:
            BackendError: that is everything.
        """
        logits = logits.copy()
        if self._others is not None:
            logits[self._others] = -math.inf
        if self._n_tokens < self._n_first:
            logits[self._at_first] = -math.inf
        logits[self._forbidden_here()] = -math.inf
        if logits.max() == -math.inf:
            raise BackendError("no token is allowed here", hint="allow more tokens, or forbid fewer")
        return logits

    def _forbidden_here(self) -> list[int]:
        """Last tokens of the bad sequences whose others have just come."""
        last = tuple(self._last)
        return [each[-1] for each in self._bad if last[len(last) - len(each) + 1 :] == each[:-1] or len(each) == 1]


def _check_tokens(tokens: Collection[int], n_vocab: int) -> None:
    unknown = [token for token in tokens if not 0 <= token < n_vocab]
    if unknown:
        raise UsageError(f"no token {unknown[0]}", hint=f"tokens are 0 to {n_vocab - 1}")
