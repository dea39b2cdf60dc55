"""Checkpoints made for tests: MiMo's tensors listed by hand, tiny folders with random weights, hollow full size.

The list here is deliberately not derived from convert/mimo.toml: it is what conversion is measured against.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Published metadata of MiMo-7B-RL: config.json, generation_config.json, tokenizer_config.json, the index of its shards.
PUBLISHED_FACTS = Path(__file__).resolve().parent / "data" / "mimo-7b"
SHARED = Path(__file__).resolve().parents[2] / "shared"
PUBLISHED = SHARED / "mimo-7b"
QWEN2_VOCAB = Path(os.environ.get("MIMO_GGUF_QWEN2_VOCAB", SHARED / "qwen2-vocab"))

QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["MiMoForCausalLM"],
    "tokenizer_class": ["Qwen2Tokenizer"],
    "attention_bias": True,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "model_type": "mimo",
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 640000,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 272,
}
ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<|fim_pad|>")
Shapes = dict[str, tuple[int, ...]]


def block_shapes(prefix: str, config: Mapping[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    return {
        prefix + name: shape
        for name, shape in {
            "input_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (q, hidden),
            "self_attn.q_proj.bias": (q,),
            "self_attn.k_proj.weight": (kv, hidden),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.weight": (kv, hidden),
            "self_attn.v_proj.bias": (kv,),
            "self_attn.o_proj.weight": (hidden, q),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }.items()
    }


def mtp_shapes(layer: int, config: Mapping[str, Any]) -> Shapes:
    hidden = config["hidden_size"]
    prefix = f"model.mtp_layers.{layer}."
    return {
        **block_shapes(prefix, config),
        prefix + "token_layernorm.weight": (hidden,),
        prefix + "hidden_layernorm.weight": (hidden,),
        prefix + "final_layernorm.weight": (hidden,),
        prefix + "input_proj.weight": (hidden, 2 * hidden),
    }


def tensor_shapes(config: Mapping[str, Any], n_mtp: int = 1, *, lm_head: bool = True) -> Shapes:
    """Every tensor of a MiMo checkpoint."""
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= block_shapes(f"model.layers.{layer}.", config)
    for layer in range(n_mtp):
        shapes |= mtp_shapes(layer, config)
    shapes["model.norm.weight"] = (hidden,)
    if lm_head:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def random_bits(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> bytes:
    values = (rng.standard_normal(shape) * 0.05 + (1.0 if len(shape) == 1 else 0.0)).astype(np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64, "I8": np.int8}[dtype]).tobytes()


def write_checkpoint(
    folder: Path,
    *,
    config: Mapping[str, Any] = CONFIG,
    shapes: Shapes | None = None,
    dtype: str = "BF16",
    n_shards: int = 2,
    seed: int = 0,
    dtypes: Mapping[str, str] | None = None,
    tokenizer: bool = True,
) -> dict[str, bytes]:
    """A complete checkpoint folder with random weights; returns every tensor's bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = tensor_shapes(config) if shapes is None else shapes
    dtypes = dtypes or {}
    rng = np.random.default_rng(seed)
    data = {name: random_bits(shape, dtypes.get(name, dtype), rng) for name, shape in shapes.items()}
    names = sorted(shapes)
    shards = [names[i::n_shards] for i in range(n_shards)]
    weight_map: dict[str, str] = {}
    for number, shard_names in enumerate(shards, 1):
        file_name = "model.safetensors" if n_shards == 1 else f"model-{number:05d}-of-{n_shards:05d}.safetensors"
        table = {name: (dtypes.get(name, dtype), shapes[name], len(data[name])) for name in shard_names}
        write_safetensors(folder / file_name, table, data)
        weight_map |= dict.fromkeys(shard_names, file_name)
    if n_shards > 1:
        index = {"metadata": {"total_size": sum(map(len, data.values()))}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        write_tokenizer(folder)
    return data


def write_safetensors(
    path: Path, table: Mapping[str, tuple[str, tuple[int, ...], int]], data: Mapping[str, bytes]
) -> None:
    """One shard of {name: (dtype, shape, size in bytes)}; tensors without data become a sparse hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, size) in table.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in table:
            file.write(data.get(name, b""))
        file.truncate(8 + len(text) + at)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of the Qwen2 form: 256 bytes, no merges but one, the added tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    vocab = {"he" if token == "ÿ" else token: i for i, token in enumerate(alphabet)}  # byte FF is in no UTF-8 text
    added = [
        {"id": 256 + i, "content": content, "special": content.startswith("<|"), "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for i, content in enumerate(ADDED)
    ]  # fmt: skip
    table = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_REGEX}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": [["h", "e"]]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(table))
    settings = {
        "added_tokens_decoder": {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added},
        "chat_template": CHAT_TEMPLATE,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    generation = {"bos_token_id": 256, "do_sample": False, "eos_token_id": 258}
    (folder / "generation_config.json").write_text(json.dumps(generation))


def write_hollow(folder: Path, config: Mapping[str, Any], weight_map: Mapping[str, str], shapes: Shapes) -> None:
    """Shards with true headers and sizes and no data (sparse), so that full size costs no disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in sorted(set(weight_map.values())):
        names = sorted(name for name, where in weight_map.items() if where == shard)
        sizes = {name: 2 * int(np.prod(shapes[name], dtype=np.int64)) for name in names}
        write_safetensors(folder / shard, {name: ("BF16", shapes[name], sizes[name]) for name in names}, {})
    total = sum(2 * int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
