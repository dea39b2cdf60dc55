"""Metadata keys of our own, for what Hugging Face's tokenizer files state and llama.cpp's keys cannot.

Their values are texts, because llama.cpp gives out texts and numbers of a loaded file, but not arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

# Added tokens: those that are matched as a whole. llama.cpp counts more as such, like `</s>` for Qwen2.
ADDED_IDS: Final = "mimo_gguf.tokenizer.added_ids"
# Further tokens that end an answer, besides those that llama.cpp knows by key or by their text.
END_IDS: Final = "mimo_gguf.tokenizer.end_ids"
# Added tokens that are looked for in the normalized text; the others are looked for in the text as it is.
NORMALIZED_IDS: Final = "mimo_gguf.tokenizer.normalized_ids"


def format_ids(ids: Iterable[int]) -> str:
    """The ids as a text: `151643 151645`."""
    return " ".join(map(str, ids))


def parse_ids(text: str | None, n_tokens: int) -> frozenset[int]:
    """The ids in a text of `format_ids`; whatever is not the id of one of `n_tokens` tokens is left out."""
    parts = (text or "").split()
    numbers = (int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 10)
    return frozenset(number for number in numbers if number < n_tokens)
