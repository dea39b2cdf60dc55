"""Scores of tokens in OpenAI's two forms: a list of objects for chat, parallel lists for completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mimo_gguf.engine.logprobs import Scores, TokenScore
from mimo_gguf.llama.vocabulary import Vocabulary

_LEAST: Final = -9999.0  # JSON has no minus infinity


def chat_scores(scores: Sequence[Scores], n_top: int, vocabulary: Vocabulary) -> dict[str, Any]:
    """`choices[].logprobs` of a chat. `bytes` is exact even if a token is a part of a character."""

    def entry(score: TokenScore) -> dict[str, Any]:
        raw = vocabulary.piece(score.token, special=True)
        return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(score.logprob), "bytes": list(raw)}

    content = [entry(each[0]) | {"top_logprobs": [entry(s) for s in likeliest(each, n_top)]} for each in scores]
    return {"content": content, "refusal": None}


def completion_scores(
    tokens: Sequence[int], scores: Sequence[Scores], n_top: int, vocabulary: Vocabulary, offset: int = 0
) -> dict[str, Any]:
    """`choices[].logprobs` of a completion.

    Args:
        tokens: the token at each place.
        scores: the scores at each place; empty for the first token of a prompt, which nothing predicts.
        offset: characters of text before the first token.
    """
    texts = [vocabulary.piece(token, special=True).decode("utf-8", "replace") for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_finite(each[0].logprob) if each else None for each in scores],
        "top_logprobs": [_top(each, n_top, vocabulary) for each in scores],
        "text_offset": offsets,
    }


def likeliest(scores: Scores, n_top: int) -> list[TokenScore]:
    """The `n_top` likeliest tokens of one place, best first. The token that stands there comes first in `scores`."""
    drawn, *others = scores
    ranked = sorted([drawn, *others], key=lambda score: score.rank)
    return ranked[:n_top]


def _top(scores: Scores, n_top: int, vocabulary: Vocabulary) -> dict[str, float] | None:
    """The likeliest tokens of one place by their texts, and the token that stands there; None for the first."""
    if not scores:
        return None
    shown = {score.token: score for score in [*likeliest(scores, n_top), scores[0]]}
    found: dict[str, float] = {}
    for score in shown.values():
        text = vocabulary.piece(score.token, special=True).decode("utf-8", "replace")
        found[text] = max(_finite(score.logprob), found.get(text, _LEAST))
    return found


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
