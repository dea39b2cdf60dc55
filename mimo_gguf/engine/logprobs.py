"""What the model thought of a token: its log-probability and rank among all, from the target's raw logits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mimo_gguf.llama.api import Floats


class TokenScore(NamedTuple):
    """One token at one place.

    Attributes:
        logprob: natural logarithm of its probability, before temperature, bias, penalties and grammar.
        rank: 1 for the likeliest; of equals all have the last of their places, as in vLLM.
    """

    token: int
    logprob: float
    rank: int


Scores = tuple[TokenScore, ...]  # of one place: the token that stands there, then the likeliest, best first


def score_token(logits: Floats, token: int, n_top: int) -> Scores:
    """Scores of `token` and, after it, of the `n_top` likeliest (which it may be one of); -1: of all.

    Args:
        logits: shape (n_vocab,). They are not changed.
    """
    values = np.asarray(logits, np.float64)
    highest = values.max()
    log_total = highest + np.log(np.exp(values - highest).sum())
    scores = [TokenScore(token, float(values[token] - log_total), int((values >= values[token]).sum()))]
    for rank, place in enumerate(_likeliest(values, len(values) if n_top < 0 else n_top), 1):
        if place != token:
            scores.append(TokenScore(int(place), float(values[place] - log_total), rank))
    return tuple(scores)


def _likeliest(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], n: int) -> list[int]:
    n = min(n, len(values))
    if n == 0:
        return []
    places = np.argpartition(-values, n - 1)[:n] if n < len(values) else np.arange(n)
    ordered: list[int] = places[np.argsort(-values[places], kind="stable")].tolist()
    return ordered
