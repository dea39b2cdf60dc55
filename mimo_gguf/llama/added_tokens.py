"""Splits text at its added tokens as Hugging Face's tokenizers do: the leftmost token first, of these the longest.

llama.cpp instead looks for the longest token of all first, wherever it stands, and does not look for some tokens in the
normalized text. Source: `AddedVocabulary` in huggingface/tokenizers, tokenizers/src/tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched as a whole.

    Attributes:
        content: its text.
        special: whether it is a control token.
        normalized: whether it is looked for in the normalized text, not in the text as it is.
    """

    token_id: int
    content: str
    special: bool
    normalized: bool


class AddedTokens:
    """Finds a model's added tokens in texts."""

    def __init__(self, tokens: Sequence[AddedToken], normalize: Callable[[str], str]) -> None:
        """Prepares the search. `normalize` is applied to tokens that are looked for in the normalized text."""
        self._tables = {
            (special, normalized): {
                normalize(token.content) if normalized else token.content: token.token_id
                for token in tokens
                if token.content and token.normalized is normalized and (special or not token.special)
            }
            for special in (True, False)
            for normalized in (True, False)
        }
        self._patterns = {kind: _pattern_of(list(table)) for kind, table in self._tables.items()}

    def split(self, text: str, *, special: bool, normalized: bool) -> Iterator[tuple[str, int | None]]:
        """Yields the parts of `text` in order: (text, id) for each added token, (text, None) for what lies between.

        Args:
            special: look for control tokens, too.
            normalized: look for the tokens of the normalized text, not for the others.
        """
        pattern, table = self._patterns[special, normalized], self._tables[special, normalized]
        at = 0
        for found in pattern.finditer(text) if pattern is not None else ():
            if found.start() > at:
                yield text[at : found.start()], None
            yield found[0], table[found[0]]
            at = found.end()
        if at < len(text):
            yield text[at:], None


def _pattern_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    if not texts:
        return None
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))
