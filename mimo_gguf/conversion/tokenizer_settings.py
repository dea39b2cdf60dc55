"""Checks of the settings of a Hugging Face tokenizer that change token ids: only llama.cpp's values are accepted.

llama.cpp knows a byte-level BPE by the name of its pre-tokenizer, and has no such settings. A file made in spite of one
would turn text into other tokens than the model was trained on. Source of the defaults: the
serialisation of huggingface/tokenizers 0.23, and `Qwen2Tokenizer` in transformers 5.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mimo_gguf.conversion.recipe import PreTokenizer
from mimo_gguf.core.errors import CheckpointError

_HINT: Final = "the fine-tune changed the tokenizer; llama.cpp has no setting for this"
# Settings of the BPE model in tokenizer.json, and their values without an effect.
_MODEL: Final[Mapping[str, tuple[Any, ...]]] = {
    "dropout": (None, 0),
    "ignore_merges": (None, False),
    "byte_fallback": (None, False),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}
# Settings in tokenizer_config.json, and their values without an effect.
_CONFIG: Final[Mapping[str, tuple[Any, ...]]] = {
    "add_prefix_space": (None, False),
    "split_special_tokens": (None, False),
    "do_lower_case": (None, False),
}
_SPLIT: Final = {"type": "Split", "behavior": "Isolated", "invert": False}
_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
# Tokenizer classes that use tokenizer.json unchanged.
_GENERIC_CLASSES: Final = frozenset(
    {"PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizer", "LlamaTokenizerFast"}
)


def check_model(model: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError if the BPE model in tokenizer.json merges in another way than llama.cpp."""
    _check_settings(model, _MODEL, path, "model.")


def check_tokenizer_config(settings: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError if tokenizer_config.json asks for a reading of text that llama.cpp does not have."""
    _check_settings(settings, _CONFIG, path, "")
    auto_map = settings.get("auto_map")
    if isinstance(auto_map, Mapping) and auto_map.get("AutoTokenizer"):
        raise CheckpointError(f"{path}: auto_map names a tokenizer with code of its own", hint=_HINT)


def _check_settings(stated: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], path: Path, prefix: str) -> None:
    for name, values in neutral.items():
        if stated.get(name) not in values:
            raise _refusal(path, f"{prefix}{name}", stated[name])


def find_pre_tokenizer(
    table: Mapping[str, Any], classes: Sequence[str], path: Path, known: Sequence[PreTokenizer]
) -> PreTokenizer:
    """The recipe's entry for the way in which tokenizer.json normalizes and splits text.

    Args:
        classes: names of the tokenizer's class, as tokenizer_config.json or config.json states them.

    Raises:
        CheckpointError: the recipe has none, or there is a further stage; the message names it.
    """
    entry = _find_split(table.get("pre_tokenizer"), path, known)
    _check_normalizer(table.get("normalizer"), classes, path, entry)
    _check_post_processor(table.get("post_processor"), path)
    others = [name for name in classes if name not in _GENERIC_CLASSES and name not in entry.tokenizer_classes]
    if others:
        raise _refusal(path.with_name("tokenizer_config.json"), "tokenizer_class", others[0])
    return entry


def find_by_class(classes: Sequence[str], known: Sequence[PreTokenizer]) -> PreTokenizer | None:
    """The recipe's entry for one of the tokenizer classes; None if there is none."""
    return next((entry for entry in known if any(name in classes for name in entry.tokenizer_classes)), None)


def _find_split(stage: Any, path: Path, known: Sequence[PreTokenizer]) -> PreTokenizer:
    stages = _flat(stage, "pretokenizers")
    patterns = [inner.get("pattern") for inner in stages if inner.get("type") == "Split"]
    entry = next((entry for entry in known if patterns == [{"Regex": entry.regex}]), None)
    if entry is None:
        raise CheckpointError(
            f"{path}: splits text by {reprlib.repr(patterns)}; known: {', '.join(entry.name for entry in known)}",
            hint="the fine-tune changed the tokenizer; llama.cpp would need a name for it",
        )
    expected = (_SPLIT, _BYTE_LEVEL)
    for place, inner in enumerate(stages):
        wanted = expected[place] if place < len(expected) else {"type": None}
        for name, value in wanted.items():
            if inner.get(name) != value:
                raise _refusal(path, f"pre_tokenizer {inner.get('type')}: {name}", inner.get(name))
    if len(stages) < len(expected):
        raise _refusal(path, "pre_tokenizer without", "ByteLevel")
    return entry


def _check_normalizer(stage: Any, classes: Sequence[str], path: Path, entry: PreTokenizer) -> None:
    """Raises CheckpointError for any normalizer but the recipe's.

    The recipe's tokenizer classes apply theirs even if none is stated.
    """
    found = [inner.get("type") for inner in _flat(stage, "normalizers")]
    if found == [entry.normalizer] or (not found and any(name in entry.tokenizer_classes for name in classes)):
        return
    stated = ", ".join(map(str, found)) or "null"
    raise CheckpointError(f"{path}: splits text after the normalizer {stated}; known: {entry.normalizer}", hint=_HINT)


def _check_post_processor(stage: Any, path: Path) -> None:
    """Raises CheckpointError for a stage that puts tokens before or after the text."""
    for inner in _flat(stage, "processors"):
        kind = inner.get("type")
        pieces = inner.get("single") or []
        if kind != "ByteLevel" and (kind != "TemplateProcessing" or any("SpecialToken" in piece for piece in pieces)):
            raise _refusal(path, "post_processor", kind)


def _flat(stage: Any, key: str) -> list[Mapping[str, Any]]:
    """The stages without nesting: those of a `Sequence` and of those within it, or the one stage."""
    if stage is None:
        return []
    if stage.get("type") == "Sequence":
        return [inner for part in stage[key] for inner in _flat(part, key)]
    return [stage]


def _refusal(path: Path, name: str, value: Any) -> CheckpointError:
    return CheckpointError(f"{path}: {name} is {reprlib.repr(value)}, which changes token ids", hint=_HINT)
