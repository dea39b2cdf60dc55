"""MiMo-7B as published: its geometry and tensors, for questions asked before there is a file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from mimo_gguf.core.geometry import STEP35, Geometry
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.core.shelves import QUANT_PROFILES, read_toml, shelf

PUBLISHED_ID: Final = "XiaomiMiMo/MiMo-7B-RL"  # on the Hub
PUBLISHED_IDS: Final = (
    PUBLISHED_ID,
    "XiaomiMiMo/MiMo-7B-RL-0530",
    "XiaomiMiMo/MiMo-7B-RL-Zero",
    "XiaomiMiMo/MiMo-7B-SFT",
    "XiaomiMiMo/MiMo-7B-Base",
)
_FILE: Final = "models/mimo-7b.toml"


@cache
def published_model() -> ModelSizes:
    """MiMo-7B with its MTP layer, all matrices in BF16 and vectors in F32, from the data file beside the profiles.

    Raises:
        RecipeError: the data file was not installed.
    """
    table = read_toml(shelf(QUANT_PROFILES) / _FILE)
    tensors = tuple(_tensors(table))
    shapes = {info.name: info.shape for info in tensors}
    vocab_size, width = shapes["token_embd.weight"]
    head_dim = shapes["blk.0.attn_q.weight"][0] // int(table["head_count"])
    geometry = Geometry(
        architecture=STEP35,
        block_count=int(table["n_trunk"]) + int(table["n_mtp"]),
        n_mtp=int(table["n_mtp"]),
        context_length=int(table["context_length"]),
        embedding_length=width,
        feed_forward_length=shapes["blk.0.ffn_up.weight"][0],
        head_count=int(table["head_count"]),
        head_count_kv=int(table["head_count_kv"]),
        key_length=head_dim,
        value_length=head_dim,
        rope_freq_base=float(table["rope_freq_base"]),
        rms_epsilon=float(table["rms_epsilon"]),
        vocab_size=vocab_size,
    )
    return ModelSizes(str(table["name"]), geometry, tensors)


def _tensors(table: dict[str, Any]) -> Iterator[TensorInfo]:
    n_trunk, n_mtp = int(table["n_trunk"]), int(table["n_mtp"])
    named = dict(table["outside"])
    for i in range(n_trunk + n_mtp):
        members = table["block"] | (table["mtp"] if i >= n_trunk else {})
        named |= {f"blk.{i}.{name}": shape for name, shape in members.items()}
    for name, shape in named.items():
        yield TensorInfo(name, tuple(shape), GgmlType.BF16 if len(shape) > 1 else GgmlType.F32)
