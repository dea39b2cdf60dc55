"""The largest logits of a pass, found for all its rows at once: one call of numpy costs more than its work on a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Best:
    """What is known of the largest logits of a pass.

    Attributes:
        n_rows: the rows of the pass if all of them have logits; else 0, and rows are looked at one by one.
        tokens: the token with the largest logit in each row; empty until one is asked for.
        leads: by how much that logit exceeds the second largest one; empty until one is asked for.
    """

    __slots__ = ("leads", "n_rows", "tokens")

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.tokens: list[int] = []
        self.leads: list[float] = []


class Decoded(Protocol):
    """A context after a decode."""

    best: Best

    def logits(self, row: int, /) -> NDArray[np.float32]: ...
    def all_logits(self, n_rows: int, /) -> NDArray[np.float32]: ...


def likeliest(context: Decoded, row: int) -> int:
    """The token with the largest logit in batch row `row` of the last decode, the first of equal ones."""
    best = context.best
    if not best.n_rows:
        return int(context.logits(row).argmax())
    if not best.tokens:
        best.tokens = context.all_logits(best.n_rows).argmax(axis=1).tolist()
    return best.tokens[row]


def lead(context: Decoded, row: int) -> float:
    """By how much the largest logit in batch row `row` of the last decode exceeds the second largest one."""
    best = context.best
    if not best.n_rows:
        return _lead(context.logits(row), likeliest(context, row))
    if not best.leads:
        logits, first = context.all_logits(best.n_rows), likeliest(context, 0)  # which finds those of all rows
        best.leads = _leads(logits, best.tokens) if best.n_rows > 1 else [_lead(logits[0], first)]
    return best.leads[row]


def _lead(logits: NDArray[np.float32], first: int) -> float:
    """As `_leads` of one row, in a fifth of the time."""
    largest = logits.item(first)
    logits[first] = -np.inf  # restored below
    second: float = logits.item(logits.argmax())  # `max` costs five times as much for a small vocabulary
    logits[first] = largest
    return largest - second


def _leads(logits: NDArray[np.float32], tokens: Sequence[int]) -> list[float]:
    """The leads in logits of shape (n_rows, n_vocab), which lie without gaps, and are largest at `tokens`."""
    flat, beginnings = logits.reshape(-1), np.arange(0, logits.size, logits.shape[1])
    first = beginnings + tokens
    largest = flat[first]
    flat[first] = -np.inf  # restored below: a second search costs less than comparing all
    second = flat[beginnings + logits.argmax(axis=1)]
    flat[first] = largest
    found: list[float] = (largest - second).tolist()
    return found
