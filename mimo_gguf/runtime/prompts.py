"""Reads prompts in the forms that callers use: text, token ids, vLLM's dicts, and lists of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NotRequired, TypedDict

from mimo_gguf.chat.reasoning import opened_block
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.numbers import is_whole
from mimo_gguf.llama.vocabulary import Vocabulary

_HINT: Final = 'give a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}'
_LAST: Final = 16  # tokens at the end of a prompt in which a `<think>` is looked for


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as token ids; `prompt` is its text for the output."""

    prompt_token_ids: Sequence[int]
    prompt: NotRequired[str]


PromptType = str | Sequence[int] | TextPrompt | TokensPrompt


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it is evaluated.

    Attributes:
        text: None if only its tokens were given.
        opened: its text after a `<think>` of its own; None if it opens no block.
    """

    text: str | None
    tokens: tuple[int, ...]
    opened: str | None

    def last(self, n: int | None) -> Prompt:
        """The prompt's last `n` tokens; all if `n` is None."""
        return self if n is None else Prompt(self.text, self.tokens[-n:], self.opened)


def read_prompt(given: Any, vocabulary: Vocabulary) -> Prompt:
    """Reads one prompt.

    Raises:
        UsageError: it has none of the forms, or a token that the model does not have.
    """
    if isinstance(given, str):
        return Prompt(given, tuple(vocabulary.tokenize(given)), opened_block(given))
    if isinstance(given, Mapping):
        return _read_dict(given, vocabulary)
    if isinstance(given, bytes | bytearray) or not isinstance(given, Iterable):
        raise UsageError(f"no prompt: {given!r:.60}", hint=_HINT)
    return _of_tokens(list(given), None, vocabulary)


def list_prompts(given: Any) -> list[Any]:
    """A list of the given prompts: one, or several in any iterable.

    Raises:
        UsageError: it is neither a prompt nor an iterable.
    """
    if isinstance(given, str | Mapping):
        return [given]
    if isinstance(given, bytes | bytearray) or not isinstance(given, Iterable):
        raise UsageError(f"no prompt: {given!r:.60}", hint=_HINT)
    found = list(given)
    return [found] if found and all(map(is_whole, found)) else found


def _read_dict(given: Mapping[str, Any], vocabulary: Vocabulary) -> Prompt:
    known = ("prompt", "prompt_token_ids", "cache_salt")
    for name in given:
        if name not in known:
            raise UsageError(f"a prompt with {name!r:.40}", hint=name_hint(str(name), known, _HINT))
    text, tokens = given.get("prompt"), given.get("prompt_token_ids")
    if tokens is None:
        if not isinstance(text, str):
            raise UsageError(f"no prompt: {given!r:.60}", hint=_HINT)
        return read_prompt(text, vocabulary)
    if not isinstance(tokens, Iterable) or isinstance(tokens, str | bytes):
        raise UsageError(f"no token ids: {tokens!r:.60}", hint=_HINT)
    return _of_tokens(list(tokens), text, vocabulary)


def _of_tokens(tokens: list[Any], text: str | None, vocabulary: Vocabulary) -> Prompt:
    for token in tokens:
        if not is_whole(token):
            raise UsageError(f"no token id: {token!r:.60}", hint=_HINT)
        if not 0 <= token < vocabulary.n_tokens:
            raise UsageError(f"no token {token}", hint=f"tokens are 0 to {vocabulary.n_tokens - 1}")
    ids = [int(token) for token in tokens]
    return Prompt(text, tuple(ids), opened_block(vocabulary.text(ids[-_LAST:])))
