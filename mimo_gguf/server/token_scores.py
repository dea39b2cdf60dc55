"""Scores of tokens in OpenAI's two forms: a list of objects for chat, parallel lists for completions.

`TextScores` finds those of the answer's text among those of all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mimo_gguf.chat.reasoning import THINK_CLOSE, THINK_OPEN
from mimo_gguf.chat.text_stream import held_back
from mimo_gguf.engine.logprobs import Scores, TokenScore
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.server.tool_calls import CLOSE, OPEN

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


class TextScores:
    """Finds the scores of an answer's text as it comes, without reasoning, calls of tools, markers, and the end.

    What nobody can tell yet is held back: `<` may begin a call, or be text.
    """

    def __init__(self, vocabulary: Vocabulary, *, inside: bool, with_calls: bool) -> None:
        """Begins an answer.

        Args:
            inside: whether the prompt has opened a block of reasoning.
            with_calls: whether `<tool_call>` begins a call.
        """
        self._vocabulary, self._with_calls = vocabulary, with_calls
        self._until = THINK_CLOSE if inside else ""  # the marker that ends what is no text; empty within text
        self._at_start = not inside
        self._is_blank = False  # whether only line ends have come since a marker
        self._seen = ""  # what may be, or begin, a marker; a character for each byte
        self._held: list[Scores] = []
        self._found: list[Scores] = []

    def add(self, scores: Sequence[Scores]) -> None:
        """Adds the scores of the next tokens."""
        for each in scores:
            token = each[0].token
            if token not in self._vocabulary.end_tokens:
                self._seen += self._vocabulary.piece(token, special=True).decode("latin-1")
                self._held.append(each)
                self._sort()

    def take(self) -> tuple[Scores, ...]:
        """The scores that were found since the last call."""
        found, self._found = tuple(self._found), []
        return found

    def finish(self) -> tuple[Scores, ...]:
        """The same, with those that were held back, because no more tokens come."""
        if not self._until:
            self._release()
        return self.take()

    def _sort(self) -> None:
        """Decides about what is held."""
        if self._at_start:
            begun = self._seen.lstrip()
            if begun.startswith(THINK_OPEN):
                self._leave_text(THINK_CLOSE)
            elif THINK_OPEN.startswith(begun):
                return
            self._at_start = False
        if self._until:
            _, marker, rest = self._seen.partition(self._until)
            self._held = []
            if marker:
                self._until, self._seen, self._is_blank = "", rest, True
        elif self._is_blank and not self._seen.strip("\n"):
            self._held, self._seen = [], ""
        elif self._with_calls and OPEN in self._seen:
            self._leave_text(CLOSE)
        elif not (self._with_calls and held_back(self._seen, (OPEN,))):
            self._release()

    def _leave_text(self, until: str) -> None:
        self._until, self._held = until, []

    def _release(self) -> None:
        self._found += self._held
        self._held, self._seen, self._is_blank = [], "", False
