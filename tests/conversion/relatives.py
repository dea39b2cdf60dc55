"""Checkpoints like those of MiMo-VL-7B and MiMo-Embodied-7B: MiMo's trunk and a vision tower in Qwen2.5-VL's class.

The tensors are listed by hand, from the class in transformers 4.51 that the models were published for:
https://github.com/huggingface/transformers/blob/v4.51.3/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.checkpoints import CONFIG, Shapes, tensor_shapes

NAMES = (
    "MiMo-VL-7B-SFT",
    "MiMo-VL-7B-RL",
    "MiMo-VL-7B-SFT-2508",
    "MiMo-VL-7B-RL-2508",
    "MiMo-Embodied-7B",
)
# The vision tower of all of them, by their technical reports: Qwen2.5-ViT, its output as wide as the trunk.
FULL_VISION: dict[str, Any] = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
    "out_hidden_size": 4096, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
    "model_type": "qwen2_5_vl",
}  # fmt: skip
TINY_VISION: dict[str, Any] = FULL_VISION | {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4,
}  # fmt: skip
# Settings of the whole model, beside those of the trunk.
OUTER: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
}
# What Qwen2.5-VL's text model has no key for: its biases are as they are, and so is the width of its heads.
_NOT_THERE = {
    "attention_bias",
    "head_dim",
    "num_nextn_predict_layers",
    "tokenizer_class",
    "architectures",
    "model_type",
}


def flat_config(trunk: Mapping[str, Any] = CONFIG, vision: Mapping[str, Any] = TINY_VISION) -> dict[str, Any]:
    """A config.json as transformers up to 4.51 writes it: the trunk's settings at the top."""
    text = {key: value for key, value in trunk.items() if key not in _NOT_THERE}
    half = trunk.get("head_dim", trunk["hidden_size"] // trunk["num_attention_heads"]) // 2
    sections = [half // 4, (half - half // 4) // 2, half - half // 4 - (half - half // 4) // 2]
    rope = {"mrope_section": sections, "rope_type": "default", "type": "default"}
    return {**text, **OUTER, "rope_scaling": rope, "vision_config": dict(vision)}


def nested_config(trunk: Mapping[str, Any] = CONFIG, vision: Mapping[str, Any] = TINY_VISION) -> dict[str, Any]:
    """The same as transformers 5 writes it: the trunk's settings in a table, the base of the rotation in another."""
    flat = flat_config(trunk, vision)
    outer = {*OUTER, "vision_config", "tie_word_embeddings", "torch_dtype"}
    text = {key: value for key, value in flat.items() if key not in outer}
    theta, scaling = text.pop("rope_theta"), text.pop("rope_scaling")
    text |= {"model_type": "qwen2_5_vl_text", "rope_parameters": {**scaling, "rope_theta": theta}}
    return {key: value for key, value in flat.items() if key in outer} | {"text_config": text}


def vision_shapes(vision: Mapping[str, Any]) -> Shapes:
    size, inner, merged = vision["hidden_size"], vision["intermediate_size"], vision["hidden_size"] * 4
    patch = (size, 3, vision["temporal_patch_size"], vision["patch_size"], vision["patch_size"])
    shapes: Shapes = {"visual.patch_embed.proj.weight": patch}
    for layer in range(vision["depth"]):
        shapes |= {
            f"visual.blocks.{layer}.{name}": shape
            for name, shape in {
                "norm1.weight": (size,),
                "norm2.weight": (size,),
                "attn.qkv.weight": (3 * size, size),
                "attn.qkv.bias": (3 * size,),
                "attn.proj.weight": (size, size),
                "attn.proj.bias": (size,),
                "mlp.gate_proj.weight": (inner, size),
                "mlp.gate_proj.bias": (inner,),
                "mlp.up_proj.weight": (inner, size),
                "mlp.up_proj.bias": (inner,),
                "mlp.down_proj.weight": (size, inner),
                "mlp.down_proj.bias": (size,),
            }.items()
        }
    return shapes | {
        "visual.merger.ln_q.weight": (size,),
        "visual.merger.mlp.0.weight": (merged, merged),
        "visual.merger.mlp.0.bias": (merged,),
        "visual.merger.mlp.2.weight": (vision["out_hidden_size"], merged),
        "visual.merger.mlp.2.bias": (vision["out_hidden_size"],),
    }


def relative_shapes(trunk: Mapping[str, Any] = CONFIG, vision: Mapping[str, Any] = TINY_VISION) -> Shapes:
    """Every tensor as the published checkpoints name them."""
    return tensor_shapes(trunk, 0) | vision_shapes(vision)


def in_memory_name(name: str) -> str:
    """The name that transformers from 4.52 on has in memory for a tensor of a published checkpoint."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
