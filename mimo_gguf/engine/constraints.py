"""Rules on which tokens may come next: some are never allowed, some not at first, some not at the end of a sequence."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.llama.api import Floats


class Constraints:
    """The rules for one answer. Each of its tokens must be noted, whether it was drawn or inserted."""

    def __init__(
        self,
        n_vocab: int,
        *,
        allowed: Collection[int] | None = None,
        bad: Sequence[Sequence[int]] = (),
        at_first: Collection[int] = (),
        n_first: int = 0,
    ) -> None:
        """Makes the rules for an answer that has not begun.

        Args:
            allowed: the only tokens that may come; None allows all.
            bad: sequences that may not come: the last token of each is forbidden after the others.
            at_first: tokens that may not be among the first `n_first`.

        Raises:
            UsageError: a rule names a token that the model does not have.
        """
        _check_tokens([*(allowed or ()), *(token for each in bad for token in each)], n_vocab)
        self._others: np.ndarray[tuple[int], np.dtype[np.intp]] | None = None
        if allowed is not None:
            self._others = np.setdiff1d(np.arange(n_vocab), list(allowed))
        self._bad = [tuple(each) for each in bad if each]
        self._longest = max(map(len, self._bad), default=1)
        self._at_first, self._n_first = list(at_first), n_first
        self._n_tokens = 0
        self._last: list[int] = []  # as many as the longest bad sequence has

    @property
    def are_active(self) -> bool:
        """Whether a token is forbidden here."""
        return self._others is not None or self._n_tokens < self._n_first or bool(self._forbidden_here())

    def note(self, token: int) -> None:
        """Notes the next token of the answer."""
        self._n_tokens += 1
        self._last = [*self._last, token][-self._longest :]

    def masked(self, logits: Floats) -> Floats:
        """A copy of `logits`, shape (n_vocab,), in which forbidden tokens have minus infinity.

        Raises:
            BackendError: every token is forbidden.
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
        """The last tokens of the bad sequences whose other tokens have just come."""
        last = tuple(self._last)
        return [each[-1] for each in self._bad if last[len(last) - len(each) + 1 :] == each[:-1] or len(each) == 1]


def _check_tokens(tokens: Collection[int], n_vocab: int) -> None:
    unknown = [token for token in tokens if not 0 <= token < n_vocab]
    if unknown:
        raise UsageError(f"no token {unknown[0]}", hint=f"tokens are 0 to {n_vocab - 1}")
