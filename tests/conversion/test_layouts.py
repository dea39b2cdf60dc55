"""The metadata of each layout, key by key, written out apart from the recipe: what llama.cpp's loaders demand.

https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/step35.cpp#L3-L36
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType

from mimo_gguf.conversion.checkpoint import read_checkpoint
from mimo_gguf.conversion.checkpoint_source import ConversionOptions, plan_conversion
from tests.checkpoints import CONFIG, tensor_shapes, write_checkpoint

U, F = GGUFValueType.UINT32, GGUFValueType.FLOAT32
# every number its own, so that no two can be exchanged unseen
SIZES = {
    "hidden_size": 120, "intermediate_size": 112, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 20,
    "num_hidden_layers": 4, "max_position_embeddings": 9000, "rms_norm_eps": 2e-05, "rope_theta": 320000,
}  # fmt: skip
SHARED: dict[str, tuple[GGUFValueType, Any]] = {
    "context_length": (U, 9000),
    "embedding_length": (U, 120),
    "feed_forward_length": (U, 112),
    "attention.head_count": (U, 6),
    "attention.head_count_kv": (U, 3),
    "attention.key_length": (U, 20),
    "attention.value_length": (U, 20),
    "attention.layer_norm_rms_epsilon": (F, 2e-05),
    "rope.freq_base": (F, 320000.0),
}
LAYOUTS: dict[str, dict[str, tuple[GGUFValueType, Any]]] = {
    "qwen2": SHARED | {"block_count": (U, 4), "rope.dimension_count": (U, 20)},
    "step35": SHARED
    | {
        "block_count": (U, 6),
        "nextn_predict_layers": (U, 2),
        "rope.dimension_count": (U, 40),
        "rope.dimension_count_swa": (U, 20),
        "rope.freq_base_swa": (F, 320000.0),
        "attention.sliding_window": (U, 1048576),
        "attention.sliding_window_pattern": (GGUFValueType.ARRAY, [False] * 4 + [True] * 2),
        "expert_feed_forward_length": (U, 112),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_metadata_of_a_layout(tmp_path: Path, layout: str) -> None:
    config = CONFIG | SIZES | {"num_nextn_predict_layers": 2}
    write_checkpoint(tmp_path, config=config, shapes=tensor_shapes(config, 2))
    metadata = plan_conversion(read_checkpoint(tmp_path), ConversionOptions(layout=layout)).metadata
    written = {
        key.removeprefix(f"{layout}."): (entry.value_type, entry.value)
        for key, entry in metadata.items()
        if key.startswith(f"{layout}.")
    }
    assert written == LAYOUTS[layout]
    assert metadata["general.architecture"].value == layout
