"""What a model page shows, as `general.*` metadata: name, size, licence, base model, source, tags, languages.

The gguf library reads model cards and takes names apart; this module gives it the right name (a Hub download lies in a
folder named after a commit) and catches its answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import yaml
from gguf import GGUFValueType, GGUFWriter

from mimo_gguf.conversion.checkpoint import Checkpoint
from mimo_gguf.core.model_source import Metadata, MetaValue


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
        described.source_repo_url = f"https://huggingface.co/{checkpoint.model_id}"
        if checkpoint.revision:
            described.source_url = f"{described.source_repo_url}/tree/{checkpoint.revision}"
    if described.name is None:
        described.name = checkpoint.name
    writer = GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    described.set_gguf_meta_model(writer)
    return {key: _meta_value(value) for key, value in writer.kv_data[0].items()}


def _read_card(folder: Path) -> dict[str, Any]:
    try:
        return gguf.Metadata.load_model_card(folder)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}  # a model card is prose for people; a broken one costs some metadata, never the conversion


def _read_sampling(described: gguf.Metadata, folder: Path) -> None:
    """Recommended sampling, where generation_config.json states it for sampled (not greedy) generation."""
    stated = gguf.Metadata.load_generation_config(folder) or {}
    for key, field in (
        ("temperature", "sampling_temp"),
        ("top_p", "sampling_top_p"),
        ("top_k", "sampling_top_k"),
        ("min_p", "sampling_min_p"),
    ):
        if isinstance(stated.get(key), int | float) and stated.get("do_sample", True):
            setattr(described, field, stated[key])


def _meta_value(entry: gguf.GGUFValue) -> MetaValue:
    item_type = entry.sub_type
    if entry.type is GGUFValueType.ARRAY and item_type is None:
        item_type = GGUFValueType.get_type(entry.value[0])
    return MetaValue(entry.type, entry.value, item_type)
