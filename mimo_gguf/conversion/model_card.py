"""The `general.*` metadata, which a model page shows: name, size, licence, base model, source, tags, languages.

The gguf library reads model cards and splits names. This module gives it the right name, because a Hub download lies in
a folder named after a commit, and collects its answer.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Final, TypeGuard

import gguf
from gguf import GGUFValueType, GGUFWriter

from mimo_gguf.conversion.checkpoint import Checkpoint
from mimo_gguf.conversion.checkpoint_files import read_optional_json
from mimo_gguf.core.documents import MEGABYTE, DocumentKind
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.model_source import Metadata, MetaValue

_CARD: Final = DocumentKind(CheckpointError, "correct the model card", most_bytes=2 * MEGABYTE)
# Entries of a card that are lists; of any other, the first item is used.
_LISTS: Final = frozenset(
    {"base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources", "tags"}
    | {"pipeline_tag", "languages", "language"}
)


def read_general(checkpoint: Checkpoint, n_parameters: int, architecture: str) -> Metadata:
    """The `general.*` keys for a checkpoint of `n_parameters` weights, `general.architecture` first."""
    card = _read_card(checkpoint.folder)
    described = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, None, Path(checkpoint.name), n_parameters)
    _read_sampling(described, checkpoint.folder)
    if described.size_label is None:
        described.size_label = gguf.size_label(n_parameters, 0, 0, 0)
    organization, _, _ = checkpoint.model_id.rpartition("/")
    if organization:
        described.organization = described.organization or organization
        described.source_repo_url = checkpoint.page or f"https://huggingface.co/{checkpoint.model_id}"
        if checkpoint.revision and checkpoint.page is None:
            described.source_url = f"{described.source_repo_url}/tree/{checkpoint.revision}"
    if described.name is None:
        described.name = checkpoint.name
    writer = GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    described.set_gguf_meta_model(writer)
    return {key: _meta_value(value) for key, value in writer.kv_data[0].items()}


def _read_card(folder: Path) -> dict[str, Any]:
    """The card's YAML as the gguf library expects it: texts, and lists of texts.

    A model card is prose for people: an entry that is broken or odd is left out, and the conversion goes on.
    """
    path = folder / "README.md"
    try:
        stated = _CARD.parse_yaml(_front_matter(_CARD.read_text(path)), path)
    except CheckpointError:
        return {}
    plain = {key: _plain(value) for key, value in stated.items()} if isinstance(stated, dict) else {}
    return {
        key: value[0] if isinstance(value, list) and key not in _LISTS else value
        for key, value in plain.items()
        if value
    }


def _front_matter(text: str) -> str:
    """The YAML between the first line `---` and the next, with the gguf library's corrections."""
    first, *lines = text.splitlines() or [""]
    if first != "---":
        return ""
    lines = lines[: lines.index("---")] if "---" in lines else lines
    return "\n".join([*lines, ""]).replace("- no\n", '- "no"\n').replace("\t", "  ")


def _plain(value: Any) -> str | list[str] | None:
    """A text, a list of texts, or None for what is neither; numbers and dates become texts."""
    if isinstance(value, list):
        return [text for item in value if isinstance(text := _plain(item), str)]
    if isinstance(value, bool) or not isinstance(value, str | int | float | datetime.date):
        return None
    text = str(value)
    return text if _is_utf8(text) else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_sampling(described: gguf.Metadata, folder: Path) -> None:
    """Adds the recommended sampling, if generation_config.json states it for sampled (not greedy) generation."""
    stated = read_optional_json(folder / "generation_config.json")
    if stated.get("do_sample", True) is not True:
        return
    for key in ("temperature", "top_p", "min_p"):
        if _is_number(value := stated.get(key)):
            setattr(described, f"sampling_{key.replace('temperature', 'temp')}", float(value))
    if _is_number(top_k := stated.get("top_k")):
        described.sampling_top_k = int(top_k)


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number that a 32-bit metadata value can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _meta_value(entry: gguf.GGUFValue) -> MetaValue:
    item_type = entry.sub_type
    if entry.type is GGUFValueType.ARRAY and item_type is None:
        item_type = GGUFValueType.get_type(entry.value[0])
    return MetaValue(entry.type, entry.value, item_type)
