"""The tokenizer files of a checkpoint: tokens with their ids, and merges.

Added tokens stand in up to three files: tokenizer.json, `added_tokens_decoder` in tokenizer_config.json, and (older
transformers) added_tokens.json. The result equals what `AutoTokenizer` of transformers 5 reads from the same files.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mimo_gguf.conversion.checkpoint_files import read_json, read_optional_json, read_text
from mimo_gguf.conversion.recipe import PreTokenizer
from mimo_gguf.conversion.tokenizer_settings import (
    check_model,
    check_tokenizer_config,
    find_by_class,
    find_pre_tokenizer,
)
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.units import listed

# Tokens with a role, in the order in which transformers adds those that no file has an id for.
NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# The texts that Qwen2Tokenizer uses if tokenizer_config.json does not name these tokens.
_OWN_DEFAULTS: Final = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
_FURTHER_TOKENS: Final = ("additional_special_tokens", "extra_special_tokens")
_FLAGS: Final = ("lstrip", "rstrip", "single_word")  # of an added token; llama.cpp has no counterpart
# Bytes that no UTF-8 text holds; a vocabulary may lack them.
_NEVER_IN_TEXT: Final = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
# Control characters other than tab, line feed and carriage return; first bytes of U+40000 to U+FFFFF, unassigned.
_HARDLY_IN_TEXT: Final = frozenset({*range(0x20), 0x7F, 0xF1, 0xF2, 0xF3}) - frozenset(b"\t\n\r")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched as a whole before BPE runs.

    Attributes:
        special: it has a role in conversations, and is left out when text is shown.
        normalized: it is matched in the text after normalization, not before.
    """

    token_id: int
    content: str
    special: bool
    normalized: bool


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A byte-level BPE tokenizer as a checkpoint's files state it.

    Attributes:
        ids: the id of each token that merges make, by its text.
        merges: in order of rank, each as `left right`.
        pre_tokenizer: llama.cpp's name for the way text is split.
        settings: tokenizer_config.json, with special_tokens_map.json if transformers reads that.
        notes: what the user should know, in words.
    """

    ids: Mapping[str, int]
    merges: Sequence[str]
    added: Sequence[AddedToken]
    pre_tokenizer: str
    settings: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def by_content(self) -> dict[str, int]:
        """The id of every token, merged or added."""
        return dict(self.ids) | {token.content: token.token_id for token in self.added}


def read_tokenizer_files(
    folder: Path, config: Mapping[str, Any], pre_tokenizers: Sequence[PreTokenizer]
) -> TokenizerFiles:
    """The tokenizer in tokenizer.json, or in vocab.json and merges.txt if that is not there.

    Raises:
        CheckpointError: files missing, malformed or contradicting each other; not a byte-level BPE of a known kind; a
            setting that changes token ids and that llama.cpp does not have.
    """
    config_path = folder / "tokenizer_config.json"
    settings = read_optional_json(config_path)
    check_tokenizer_config(settings, config_path)
    classes = _classes(settings.get("tokenizer_class") or config.get("tokenizer_class"))
    json_path = folder / "tokenizer.json"
    if path_kind(json_path) != "nothing":
        ids, merges, in_json, entry = _from_tokenizer_json(json_path, classes, pre_tokenizers)
    elif path_kind(folder / "vocab.json") != "nothing" and path_kind(folder / "merges.txt") != "nothing":
        ids, merges, in_json, entry = *_from_vocab_json(folder), [], _entry_of_class(folder, classes, pre_tokenizers)
    else:
        raise CheckpointError(
            f"{folder}: no tokenizer (tokenizer.json, or vocab.json with merges.txt)",
            hint="download the tokenizer files",
        )
    about_bytes = _notes_on_bytes(ids, folder)
    if "added_tokens_decoder" not in settings:
        settings = settings | read_optional_json(folder / "special_tokens_map.json")
    by_itself = any(name in entry.tokenizer_classes for name in classes)  # such a class reads only some files
    stated, notes = _stated_tokens(folder, settings, in_json, ids, by_itself=by_itself)
    defaults = _OWN_DEFAULTS if by_itself else {}
    added = _numbered(stated, defaults | dict(settings), ids, folder)
    return TokenizerFiles(ids, merges, added, entry.name, settings, about_bytes + notes)


def _classes(stated: Any) -> list[str]:
    names = stated if isinstance(stated, list) else [stated]
    return [name for name in names if isinstance(name, str)]


def _entry_of_class(folder: Path, classes: Sequence[str], known: Sequence[PreTokenizer]) -> PreTokenizer:
    entry = find_by_class(classes, known)
    if entry is None:
        raise CheckpointError(f"{folder}: its tokenizer class is not known here", hint="download tokenizer.json too")
    return entry


# ---- the vocabulary and its merges


def _from_tokenizer_json(
    path: Path, classes: Sequence[str], known: Sequence[PreTokenizer]
) -> tuple[Mapping[str, int], Sequence[str], list[AddedToken], PreTokenizer]:
    table = read_json(path, "it has no tokenizer.json")
    model = table.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{path}: not a BPE tokenizer", hint="download this file again")
    try:
        merges = [_merge_line(merge) for merge in model["merges"]]
        added = [_added_token(token["id"], token, path) for token in table.get("added_tokens") or ()]
        entry = find_pre_tokenizer(table, classes, path, known)
        check_model(model, path)
    except _MALFORMED as error:
        raise _malformed(path, error) from None
    ids = _checked_ids(model.get("vocab"), path)
    return ids, _checked_merges(merges, ids, path), added, entry


def _from_vocab_json(folder: Path) -> tuple[Mapping[str, int], Sequence[str]]:
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    ids = _checked_ids(read_json(vocab_path, "it has no vocab.json"), vocab_path)
    lines = read_text(merges_path).split("\n")
    # The first line may be `#version: 0.2`; `#` may also begin a merge, but then two tokens follow without a colon.
    merges = [line for n, line in enumerate(lines) if line.strip() and not (n == 0 and line.startswith("#version"))]
    return ids, _checked_merges(merges, ids, merges_path)


def _checked_ids(vocab: Any, path: Path) -> Mapping[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(f"{path}: no vocabulary in it", hint="download this file again")
    return vocab


def _merge_line(merge: Any) -> str:
    """The merge as a line: `["h", "e"]` -> `h e`. Older files have the line itself."""
    return merge if isinstance(merge, str) else " ".join(merge)


def _checked_merges(merges: Sequence[str], ids: Mapping[str, int], path: Path) -> Sequence[str]:
    """Refuses merges that do not join two tokens of the vocabulary to a third, as Hugging Face's tokenizers do."""
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space or left not in ids or right not in ids or left + right not in ids:
            raise CheckpointError(
                f"{path}: merge {merge!r} does not join two tokens of the vocabulary", hint="download this file again"
            )
    return merges


def _notes_on_bytes(ids: Mapping[str, int], folder: Path) -> tuple[str, ...]:
    """A note if bytes that text hardly has lack a token, as in SmolLM2's vocabulary.

    Hugging Face leaves such a byte out, so that its neighbours may merge; llama.cpp leaves it out, but does not merge
    across it.

    Raises:
        CheckpointError: a byte of ordinary text has no token.
    """
    letters = _byte_letters()
    missing = [byte for byte in range(256) if byte not in _NEVER_IN_TEXT and letters[byte] not in ids]
    needed = [f"{byte:02X}" for byte in missing if byte not in _HARDLY_IN_TEXT]
    if needed:
        raise CheckpointError(
            f"{folder}: the vocabulary has no token for the byte {listed(needed)}", hint="download the tokenizer files"
        )
    if not missing:
        return ()
    return (f"the vocabulary has no token for the bytes {', '.join(f'{byte:02X}' for byte in missing)}: left out",)


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's `bytes_to_unicode`)."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


# ---- added tokens


def _stated_tokens(
    folder: Path, settings: Mapping[str, Any], in_json: Sequence[AddedToken], ids: Mapping[str, int], *, by_itself: bool
) -> tuple[list[AddedToken], tuple[str, ...]]:
    """The added tokens of all files, in order of their ids, and notes.

    With `added_tokens_decoder` in tokenizer_config.json, its flags win, and added_tokens.json is not read. Without it,
    tokenizer.json wins over added_tokens.json.
    """
    config_path = folder / "tokenizer_config.json"
    table = settings.get("added_tokens_decoder")
    try:
        if table is None:
            winners, others = list(in_json), _legacy_tokens(folder, settings)
        else:
            winners = [_added_token(int(number), token, config_path) for number, token in table.items()]
            others = list(in_json)
    except _MALFORMED as error:
        raise _malformed(config_path, error) from None
    tokens: dict[tuple[int, str], AddedToken] = {(token.token_id, token.content): token for token in others}
    tokens |= {(token.token_id, token.content): token for token in winners}
    notes: tuple[str, ...] = ()
    lacking = {token.content for token in others} - {token.content for token in winners} if table is not None else set()
    if lacking and by_itself:
        texts = listed(sorted(map(repr, lacking)))
        notes = (
            f"tokenizer_config.json lacks added tokens of tokenizer.json, so transformers 5 reads {texts} as text",
        )
    return sorted(tokens.values(), key=_sort_key), notes


def _sort_key(token: AddedToken) -> tuple[bool, Any]:
    return (type(token.token_id) is not int, token.token_id if type(token.token_id) is int else str(token.token_id))


def _legacy_tokens(folder: Path, settings: Mapping[str, Any]) -> list[AddedToken]:
    """The tokens in added_tokens.json, which has no flags: those with a role are special, the others normalized."""
    special = set(_special_texts(settings))
    table = read_optional_json(folder / "added_tokens.json")
    return [AddedToken(number, text, text in special, text not in special) for text, number in table.items()]


def _numbered(
    stated: Sequence[AddedToken], settings: Mapping[str, Any], ids: Mapping[str, int], folder: Path
) -> list[AddedToken]:
    """The added tokens with the ids that transformers gives them: it counts on from the vocabulary.

    Tokens that only have a role (`"pad_token": "<pad>"`) are added last.

    Raises:
        CheckpointError: a file states another id.
    """
    texts = _special_texts(settings)
    added: dict[str, AddedToken] = {}
    highest = len(ids) - 1
    for token in stated:
        number = added[token.content].token_id if token.content in added else ids.get(token.content, highest + 1)
        if number != token.token_id:
            raise _wrong_number(token, number, added, folder)
        highest = max(highest, number)
        added[token.content] = replace(token, special=token.special or token.content in texts)
    for text in texts:
        if text not in added:
            number = ids.get(text, highest + 1)
            highest = max(highest, number)
            added[text] = AddedToken(number, text, special=True, normalized=False)
    return list(added.values())


def _wrong_number(token: AddedToken, number: int, added: Mapping[str, AddedToken], folder: Path) -> CheckpointError:
    stated = reprlib.repr(token.token_id)
    other = next((text for text, before in added.items() if before.token_id == token.token_id), None)
    if token.content in added:
        what = f"token {token.content!r} has two ids, {number} and {stated}"
    elif other is not None:
        what = f"id {stated} is both {other!r} and {token.content!r}"
    else:
        what = f"token {token.content!r} has id {stated} in a file, and transformers gives it {number!r}"
    return CheckpointError(
        f"{folder}: {what}", hint="the tokenizer files contradict each other; save them again with transformers"
    )


def _special_texts(settings: Mapping[str, Any]) -> list[str]:
    """The texts of tokens with a role, each once."""
    found: list[Any] = [settings.get(name) for name in NAMED_TOKENS]
    for name in _FURTHER_TOKENS:
        further = settings.get(name) or ()
        found += further.values() if isinstance(further, Mapping) else further if isinstance(further, list) else ()
    texts = (token_text(token) for token in found)
    return list(dict.fromkeys(text for text in texts if text))


def token_text(stated: Any) -> str | None:
    """The text of a token that is stated as a text or as a table with its flags."""
    text = stated.get("content") if isinstance(stated, Mapping) else stated
    return text if isinstance(text, str) else None


def _added_token(token_id: Any, token: Mapping[str, Any], path: Path) -> AddedToken:
    content = token["content"]
    if not isinstance(content, str) or not content:
        raise TypeError(f"added token {token_id} has no text")
    for flag in _FLAGS:
        if token.get(flag):
            raise CheckpointError(
                f"{path}: added token {content!r} has {flag} set, which changes token ids",
                hint=f"llama.cpp has no such setting; save the tokenizer with {flag} false",
            )
    special = bool(token.get("special", False))
    return AddedToken(token_id, content, special, bool(token.get("normalized", not special)))


# ---- mistakes


# The errors of reading JSON of an unexpected form.
_MALFORMED: Final = (KeyError, TypeError, AttributeError, ValueError)


def _malformed(path: Path, error: Exception) -> CheckpointError:
    what = f"no {error}" if isinstance(error, KeyError) else str(error)
    return CheckpointError(f"{path}: malformed: {what}", hint="download this file again")
