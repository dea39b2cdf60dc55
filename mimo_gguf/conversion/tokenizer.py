"""A checkpoint's byte-level BPE tokenizer as GGUF metadata: tokens, types, merges, special ids, chat template.

The keys and their meaning: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer. What llama.cpp's own
converter writes for the same files is the measure (conversion/base.py, `get_vocab_base`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf import GGUFValueType, TokenType

from mimo_gguf.conversion.checkpoint_files import read_json, read_optional_json, read_text
from mimo_gguf.conversion.recipe import PreTokenizer
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.model_source import Metadata, array, boolean, string, uint32

# Added tokens of this look are control tokens in llama.cpp even where the checkpoint does not call them special.
_LOOKS_SPECIAL: Final = re.compile(r"<\|.*\|>|<｜.*｜>", re.DOTALL)

_ID_KEYS: Final = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token matched as a whole before BPE runs."""

    token_id: int
    content: str
    special: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary: ids of the merged tokens, the merges in order of rank, the added tokens."""

    ids: Mapping[str, int]
    merges: Sequence[str]
    added: Sequence[AddedToken]
    pre_tokenizer: str


def read_tokenizer(
    folder: Path, config: Mapping[str, Any], vocab_size: int, pre_tokenizers: Sequence[PreTokenizer]
) -> Metadata:
    """The `tokenizer.*` keys for the tokenizer files in `folder`, padded to the embedding's `vocab_size` rows.

    Raises:
        CheckpointError: files missing or malformed, ids outside the embedding or used twice, an unknown pre-tokenizer.
    """
    tokenizer_config = read_optional_json(folder / "tokenizer_config.json")
    vocabulary = read_vocabulary(folder, config, tokenizer_config, pre_tokenizers)
    tokens, types = _rows(vocabulary, vocab_size, folder)
    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(vocabulary.pre_tokenizer),
        "tokenizer.ggml.tokens": array(GGUFValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(GGUFValueType.INT32, types),
        "tokenizer.ggml.merges": array(GGUFValueType.STRING, vocabulary.merges),
    }
    generation_config = read_optional_json(folder / "generation_config.json")
    ids = _special_ids(vocabulary, tokenizer_config, config, generation_config, vocab_size)
    metadata.update((_ID_KEYS[kind], uint32(token_id)) for kind, token_id in ids.items())
    for kind in ("bos", "eos"):
        if isinstance(add := tokenizer_config.get(f"add_{kind}_token"), bool):
            metadata[f"tokenizer.ggml.add_{kind}_token"] = boolean(add)
    if (template := read_chat_template(folder, tokenizer_config)) is not None:
        metadata["tokenizer.chat_template"] = string(template)
    return metadata


def read_vocabulary(
    folder: Path,
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    pre_tokenizers: Sequence[PreTokenizer],
) -> Vocabulary:
    """The vocabulary in tokenizer.json, or in vocab.json and merges.txt where that is not there.

    Raises:
        CheckpointError: neither is there, or they are no byte-level BPE of a known kind.
    """
    if (folder / "tokenizer.json").is_file():
        return _from_tokenizer_json(folder / "tokenizer.json", pre_tokenizers)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_vocab_json(folder, config, tokenizer_config, pre_tokenizers)
    raise CheckpointError(
        f"{folder}: no tokenizer (tokenizer.json, or vocab.json with merges.txt)", hint="download the tokenizer files"
    )


def _from_tokenizer_json(path: Path, known: Sequence[PreTokenizer]) -> Vocabulary:
    table = read_json(path, "it has no tokenizer.json")
    model = table.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{path}: not a BPE tokenizer", hint="download this file again")
    try:
        merges = [_merge_line(merge) for merge in model["merges"]]
        added = [_added_token(token["id"], token) for token in table.get("added_tokens") or ()]
        pre_tokenizer = _pre_tokenizer_of(table, path, known)
    except _MALFORMED as error:
        raise _malformed(path, error) from None
    return Vocabulary(
        _checked_ids(model.get("vocab"), path), _checked_merges(merges, model["vocab"], path), added, pre_tokenizer
    )


def _from_vocab_json(
    folder: Path, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], known: Sequence[PreTokenizer]
) -> Vocabulary:
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    ids = _checked_ids(read_json(vocab_path, "it has no vocab.json"), vocab_path)
    lines = read_text(merges_path).split("\n")
    # The first line may be `#version: 0.2`; `#` may also begin a merge, but then two tokens follow without a colon.
    merges = [line for n, line in enumerate(lines) if line.strip() and not (n == 0 and line.startswith("#version"))]
    try:
        stated = (tokenizer_config.get("added_tokens_decoder") or {}).items()
        added = [_added_token(int(number), token) for number, token in stated]
    except _MALFORMED as error:
        raise _malformed(folder / "tokenizer_config.json", error) from None
    name = _pre_tokenizer_by_class(tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class"), known)
    if name is None:
        raise CheckpointError(f"{folder}: its tokenizer class is not known here", hint="download tokenizer.json too")
    return Vocabulary(ids, _checked_merges(merges, ids, merges_path), added, name)


# What taking apart JSON of another form than expected raises.
_MALFORMED: Final = (KeyError, TypeError, AttributeError, ValueError)


def _malformed(path: Path, error: Exception) -> CheckpointError:
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return CheckpointError(f"{path}: malformed: {what}", hint="download this file again")


def _merge_line(merge: Any) -> str:
    """`["h", "e"]` -> `h e`; older files have the line itself."""
    return merge if isinstance(merge, str) else " ".join(merge)


def _added_token(token_id: int, token: Mapping[str, Any]) -> AddedToken:
    if not isinstance(token["content"], str):
        raise TypeError(f"added token {token_id} has no text")
    return AddedToken(token_id, token["content"], bool(token.get("special", False)))


def _checked_ids(vocab: Any, path: Path) -> Mapping[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(f"{path}: no vocabulary in it", hint="download this file again")
    return vocab


def _checked_merges(merges: Sequence[str], ids: Mapping[str, int], path: Path) -> Sequence[str]:
    """The merges, if each joins two tokens of the vocabulary to a third, as Hugging Face's tokenizers demand too."""
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space or left not in ids or right not in ids or left + right not in ids:
            raise CheckpointError(
                f"{path}: merge {merge!r} does not join two tokens of the vocabulary", hint="download this file again"
            )
    return merges


def _pre_tokenizer_of(table: Mapping[str, Any], path: Path, known: Sequence[PreTokenizer]) -> str:
    """llama.cpp's name for how tokenizer.json normalizes and splits text."""
    normalizer = (table.get("normalizer") or {"type": "null"})["type"]
    stage = table.get("pre_tokenizer") or {}
    stages = stage.get("pretokenizers", [stage])
    patterns = [stage.get("pattern") for stage in stages if stage.get("type") == "Split"]
    for entry in known:
        if patterns == [{"Regex": entry.regex}] and normalizer in entry.normalizers:
            return entry.name
    raise CheckpointError(
        f"{path}: splits text by {patterns} after the normalizer {normalizer}; "
        f"known: {', '.join(entry.name for entry in known)}",
        hint="the fine-tune changed the tokenizer; llama.cpp would need a name for it",
    )


def _pre_tokenizer_by_class(stated: Any, known: Sequence[PreTokenizer]) -> str | None:
    classes = [stated] if isinstance(stated, str) else stated if isinstance(stated, list) else []
    return next((entry.name for entry in known if any(name in classes for name in entry.tokenizer_classes)), None)


def _rows(vocabulary: Vocabulary, vocab_size: int, folder: Path) -> tuple[list[str], list[int]]:
    """Token text and type of each of the embedding's rows; rows no token claims are padding."""
    tokens = [f"[PAD{row}]" for row in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    claims = [(token_id, content, TokenType.NORMAL) for content, token_id in vocabulary.ids.items()]
    claims += [(token.token_id, token.content, _added_type(token)) for token in vocabulary.added]
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
    _refuse_twins(tokens, folder)
    return tokens, types


def _refuse_twins(tokens: Sequence[str], folder: Path) -> None:
    """llama.cpp aborts on them: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-vocab.cpp#L2544."""
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
    vocabulary: Vocabulary,
    tokenizer_config: Mapping[str, Any],
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    vocab_size: int,
) -> dict[str, int]:
    """bos, eos and pad ids: what the tokenizer says comes first, then config.json, then generation_config.json."""
    by_content = dict(vocabulary.ids) | {token.content: token.token_id for token in vocabulary.added}
    ids: dict[str, int] = {}
    for kind in _ID_KEYS:
        stated = tokenizer_config.get(f"{kind}_token")
        content = stated.get("content") if isinstance(stated, dict) else stated
        candidates = [by_content.get(content) if isinstance(content, str) else None]
        candidates += [_first(source.get(f"{kind}_token_id")) for source in (config, generation_config)]
        for token_id in candidates:
            if type(token_id) is int and 0 <= token_id < vocab_size:
                ids[kind] = token_id
                break
    return ids


def read_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The default chat template: chat_template.jinja, else tokenizer_config.json, else chat_template.json."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return read_text(jinja)
    stated = tokenizer_config.get("chat_template")
    if stated is None:
        stated = read_optional_json(folder / "chat_template.json").get("chat_template")
    if isinstance(stated, list):  # several named templates
        named = (entry for entry in stated if isinstance(entry, dict) and entry.get("name") == "default")
        stated = next(named, {}).get("template")
    return stated if isinstance(stated, str) else None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value
