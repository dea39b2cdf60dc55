"""Log-probabilities and ranks of tokens, from the raw logits of the target context."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mimo_gguf.llama.api import Floats


class TokenScore(NamedTuple):
    """The score of one token at one position.

    Attributes:
        logprob: natural logarithm of its probability, before temperature, bias, penalties and grammar.
        rank: 1 for the likeliest. Tokens with equal logits all have the last of their ranks, as in vLLM.
    """

    token: int
    logprob: float
    rank: int


Scores = tuple[TokenScore, ...]  # of one position: first the token that stands there, then the likeliest in order


def score_token(logits: Floats, token: int, n_top: int) -> Scores:
    """The scores of `token` and of the `n_top` likeliest tokens, among which it is not repeated.

    logprob(t) = logits[t] - log(sum(exp(logits))), in float64.

    Args:
        logits: shape (n_vocab,). They are not changed.
        n_top: -1 gives the scores of all tokens.
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
    """The indices of the `n` largest values, largest first."""
    n = min(n, len(values))
    if n == 0:
        return []
    places = np.argpartition(-values, n - 1)[:n] if n < len(values) else np.arange(n)
    ordered: list[int] = places[np.argsort(-values[places], kind="stable")].tolist()
    return ordered
