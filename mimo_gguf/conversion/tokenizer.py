"""A checkpoint's byte-level BPE tokenizer as GGUF metadata: tokens, types, merges, special ids, chat templates.

The keys and their meaning: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer. The output equals what
llama.cpp's own converter writes for the same files (conversion/base.py, `get_vocab_base`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf import GGUFValueType, TokenType

from mimo_gguf.conversion.chat_templates import read_chat_templates
from mimo_gguf.conversion.checkpoint_files import read_optional_json
from mimo_gguf.conversion.recipe import PreTokenizer
from mimo_gguf.conversion.tokenizer_files import AddedToken, TokenizerFiles, read_tokenizer_files, token_text
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.model_source import Metadata, array, boolean, string, uint32
from mimo_gguf.core.tokenizer_keys import ADDED_IDS, END_IDS, NORMALIZED_IDS, format_ids

# llama.cpp treats added tokens of this form as control tokens, even if the checkpoint does not call them special.
_LOOKS_SPECIAL: Final = re.compile(r"<\|.*\|>|<｜.*｜>", re.DOTALL)

_ID_KEYS: Final = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}
# llama.cpp ends an answer at the tokens of these keys, too: end of turn, end of message.
_FURTHER_END_KEYS: Final = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


@dataclass(frozen=True, slots=True)
class TokenizerMetadata:
    """The `tokenizer.*` keys of a model, and what the user should know about them, in words."""

    keys: Metadata
    notes: tuple[str, ...]


def read_tokenizer(
    folder: Path,
    config: Mapping[str, Any],
    vocab_size: int,
    pre_tokenizers: Sequence[PreTokenizer],
    *,
    has_processor: bool = False,
) -> TokenizerMetadata:
    """The metadata for the tokenizer files in `folder`, padded to the embedding's `vocab_size` rows.

    Args:
        has_processor: as for `read_chat_templates`.

    Raises:
        CheckpointError: as `read_tokenizer_files`; also ids that are outside the embedding or used twice.
    """
    files = read_tokenizer_files(folder, config, pre_tokenizers)
    tokens, types = _rows(files, vocab_size, folder)
    keys = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(files.pre_tokenizer),
        "tokenizer.ggml.tokens": array(GGUFValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(GGUFValueType.INT32, types),
        "tokenizer.ggml.merges": array(GGUFValueType.STRING, files.merges),
    }
    generation_config = read_optional_json(folder / "generation_config.json")
    ids = _special_ids(files, config, generation_config, vocab_size)
    keys.update((_ID_KEYS[kind], uint32(token_id)) for kind, token_id in ids.items())
    further = _further_end_ids(ids.get("eos"), (generation_config, config), vocab_size)
    keys.update((key, uint32(token_id)) for key, token_id in zip(_FURTHER_END_KEYS, further, strict=False))
    if further:
        keys[END_IDS] = string(format_ids(further))
    if files.added:
        keys[ADDED_IDS] = string(format_ids(sorted(token.token_id for token in files.added)))
    if normalized := [token.token_id for token in files.added if token.normalized]:
        keys[NORMALIZED_IDS] = string(format_ids(normalized))
    for kind in ("bos", "eos"):
        if isinstance(add := files.settings.get(f"add_{kind}_token"), bool):
            keys[f"tokenizer.ggml.add_{kind}_token"] = boolean(add)
    templates = read_chat_templates(folder, files.settings, has_processor=has_processor)
    return TokenizerMetadata(keys | dict(templates.metadata()), files.notes + templates.notes)


def _rows(files: TokenizerFiles, vocab_size: int, folder: Path) -> tuple[list[str], list[int]]:
    """The text and the type of the token of each row of the embedding; rows without a token are padding."""
    tokens = [f"[PAD{row}]" for row in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    claims = [(token_id, content, TokenType.NORMAL) for content, token_id in files.ids.items()]
    claims += [(token.token_id, token.content, _added_type(token)) for token in files.added]
    for token_id, content, token_type in claims:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise CheckpointError(
                f"{folder}: token {content!r} has id {token_id!r}, outside the {vocab_size} rows of the embedding",
                hint="tokenizer and config.json are of two models",
            )
        if types[token_id] != TokenType.UNUSED and tokens[token_id] != content:
            raise CheckpointError(
                f"{folder}: id {token_id} is both {tokens[token_id]!r} and {content!r}",
                hint="download the tokenizer files again",
            )
        tokens[token_id] = content
        types[token_id] = int(token_type)
    _check_no_twins(tokens, folder)
    return tokens, types


def _check_no_twins(tokens: Sequence[str], folder: Path) -> None:
    """Raises CheckpointError if two tokens have the same text.

    llama.cpp aborts on them: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-vocab.cpp#L2544.
    """
    rows: dict[str, int] = {}
    for row, text in enumerate(tokens):
        if (first := rows.setdefault(text, row)) != row:
            raise CheckpointError(
                f"{folder}: token {text!r} has two ids, {first} and {row}", hint="download the tokenizer files again"
            )


def _added_type(token: AddedToken) -> TokenType:
    if token.special or _LOOKS_SPECIAL.fullmatch(token.content):
        return TokenType.CONTROL
    return TokenType.USER_DEFINED


def _special_ids(
    files: TokenizerFiles, config: Mapping[str, Any], generation_config: Mapping[str, Any], vocab_size: int
) -> dict[str, int]:
    """The ids of bos, eos and pad: first by the tokenizer, then by config.json, then by generation_config.json."""
    by_content = files.by_content
    ids: dict[str, int] = {}
    for kind in _ID_KEYS:
        content = token_text(files.settings.get(f"{kind}_token"))
        candidates = [None if content is None else by_content.get(content)]
        for source in (config, generation_config):
            candidates += _as_ids(source.get(f"{kind}_token_id"), vocab_size)[:1]
        token_id = next((candidate for candidate in candidates if candidate is not None), None)
        if token_id is not None:
            ids[kind] = token_id
    return ids


def _further_end_ids(first: int | None, sources: Sequence[Mapping[str, Any]], vocab_size: int) -> list[int]:
    """The ids besides `first` that end an answer by one of `sources`, each once.

    transformers ends an answer at any id of generation_config.json's `eos_token_id`, which may be a list.
    """
    stated = [token_id for source in sources for token_id in _as_ids(source.get("eos_token_id"), vocab_size)]
    return [token_id for token_id in dict.fromkeys(stated) if token_id != first]


def _as_ids(stated: Any, vocab_size: int) -> list[int]:
    """The ids in `stated`, an id or a list of ids; those that are not a row of the embedding are left out."""
    ids = stated if isinstance(stated, list) else [stated]
    return [token_id for token_id in ids if type(token_id) is int and 0 <= token_id < vocab_size]
