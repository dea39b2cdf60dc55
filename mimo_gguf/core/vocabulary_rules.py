"""Rules that a file's vocabulary must keep so that llama.cpp can tokenize with it: a byte-level BPE of the right size.

https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-vocab.cpp (llama_vocab::impl::load)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from gguf import GGUFValueType as Kind

from mimo_gguf.core.model_source import Metadata, MetaValue

NO_VOCABULARY: Final = "none"  # the tokenizer model of files that are only measured
_MODEL: Final = "gpt2"
_P: Final = "tokenizer.ggml."
_LAST_TOKEN_TYPE: Final = 5  # unused; bytes (6) are of other kinds of vocabularies
_ITEMS: Final = {
    "tokens": (Kind.STRING,),
    "token_type": (Kind.INT32,),
    "scores": (Kind.FLOAT32, Kind.INT32),
    "merges": (Kind.STRING,),
    "suppress_tokens": (Kind.INT32,),
}
_REQUIRED: Final = ("tokens", "merges")
_TEXTS: Final = (_P + "pre", "tokenizer.chat_template")
_FLAGS: Final = ("add_bos_token", "add_eos_token", "add_sep_token", "normalizer.lowercase", "normalizer.strip_accents")


def has_vocabulary(metadata: Metadata) -> bool:
    """Whether the file has a vocabulary; only the tokenizer model `none` says that it has not."""
    entry = metadata.get(_P + "model")
    return entry is None or entry.value != NO_VOCABULARY


def vocabulary_fault(metadata: Metadata, n_rows: int) -> str | None:
    """The first reason why llama.cpp cannot use the vocabulary, in words; None if there is none.

    Args:
        n_rows: rows of the embedding.
    """
    return next((fault for check in _CHECKS if (fault := check(metadata, n_rows)) is not None), None)


def _model_fault(metadata: Metadata, n_rows: int) -> str | None:
    entry = metadata.get(_P + "model")
    if entry is None or entry.value_type is not Kind.STRING or entry.value != _MODEL:
        found = "missing" if entry is None else repr(str(entry.value)[:40])
        return f"tokenizer.ggml.model is {found}, not {_MODEL!r}, the byte-level BPE that MiMo has"
    return None


def _type_fault(metadata: Metadata, n_rows: int) -> str | None:
    for name, kinds in _ITEMS.items():
        entry = metadata.get(_P + name)
        if entry is None and name not in _REQUIRED:
            continue
        if entry is None or entry.value_type is not Kind.ARRAY or entry.item_type not in kinds or not len(entry.value):
            return f"{_P}{name} is missing or not an array of {' or '.join(kind.name.lower() for kind in kinds)}"
    for key in _TEXTS:
        if not _is(metadata.get(key), Kind.STRING):
            return f"{key} is not a text"
    for name in _FLAGS:
        if not _is(metadata.get(_P + name), Kind.BOOL):
            return f"{_P}{name} is not true or false"
    return None


def _is(entry: MetaValue | None, kind: Kind) -> bool:
    return entry is None or entry.value_type is kind


def _length_fault(metadata: Metadata, n_rows: int) -> str | None:
    for name in ("tokens", "token_type", "scores"):
        values = _values(metadata, name)
        if values and len(values) != n_rows:
            return f"{_P}{name} has {len(values)} entries, the embedding {n_rows} rows"
    return None


def _token_fault(metadata: Metadata, n_rows: int) -> str | None:
    """The fault if two tokens are the same for llama.cpp, which then ends the process."""
    tokens: Sequence[str] = _values(metadata, "tokens")
    if "\0" in "".join(tokens):  # llama.cpp reads up to the NUL
        return f"token {next(i for i, token in enumerate(tokens) if chr(0) in token)} has a NUL byte in it"
    names = set(tokens)
    if "" in names:
        tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
        names = set(tokens)
    if len(names) == len(tokens):
        return None
    seen: dict[str, int] = {}
    first, second = next((seen[t], i) for i, t in enumerate(tokens) if seen.setdefault(t, i) != i)
    return f"tokens {first} and {second} are the same, {tokens[second][:40]!r}"


def _token_type_fault(metadata: Metadata, n_rows: int) -> str | None:
    types = np.asarray(_values(metadata, "token_type"), np.int64)
    wrong = np.flatnonzero((types < 0) | (types > _LAST_TOKEN_TYPE))
    return f"token {wrong[0]} is of type {types[wrong[0]]}, which no byte-level BPE has" if wrong.size else None


def _special_id_fault(metadata: Metadata, n_rows: int) -> str | None:
    for key, entry in metadata.items():
        if key.startswith(_P) and key.endswith("_token_id"):
            if entry.value_type is not Kind.UINT32:
                return f"{key} is {str(entry.value)[:40]!r} ({entry.value_type.name.lower()}), not a token id"
            if entry.value >= n_rows:
                return f"{key} is {entry.value}, with {n_rows} tokens"
    return None


def _values(metadata: Metadata, name: str) -> Any:
    entry = metadata.get(_P + name)
    return [] if entry is None else entry.value


_CHECKS: Final[tuple[Callable[[Metadata, int], str | None], ...]] = (
    _model_fault, _type_fault, _length_fault, _token_fault, _token_type_fault, _special_id_fault,
)  # fmt: skip
