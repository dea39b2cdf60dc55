"""Writes the checkpoint's folder in the form of XiaomiMiMo/MiMo-7B-RL's: configuration, tokenizer, shards, index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.real_model.geometry import EPSILON, FFN, HEAD_DIM, MIMO
from benchmarks.real_model.original import Array, Original
from benchmarks.real_model.tokenizer import write_tokenizer
from benchmarks.real_model.widening import bfloat16_bits, widen

N_SHARDS = 4
CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct in MiMo-7B's layout, {layout}{mtp}
"""


def write_checkpoint(folder: Path, original: Original, layout: str, *, mtp: bool) -> None:
    """Writes the checkpoint. The folder appears when it is whole, and replaces one that was there."""
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    dump(scratch / "config.json", mimo_config(original, n_mtp=int(mtp)))
    write_shards(scratch, widen(original, layout, mtp=mtp))
    write_tokenizer(scratch, original.fields)
    card = CARD.format(layout=layout, mtp=", with an MTP layer" if mtp else "")
    (scratch / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    scratch.rename(folder)


def write_shards(folder: Path, tensors: Iterable[tuple[str, Array]]) -> None:
    """Writes the tensors as bfloat16 into shards of about the same size, with their index."""
    entries = {name: _bfloat16(values) for name, values in tensors}
    total = sum(entry.nbytes for entry in entries.values())
    shards: list[dict[str, Any]] = [{}]
    n_bytes = 0
    for name, entry in entries.items():
        if n_bytes >= total * len(shards) / N_SHARDS:
            shards.append({})
        shards[-1][name] = entry
        n_bytes += entry.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    dump(folder / "model.safetensors.index.json", index)


def _bfloat16(values: Array) -> torch.Tensor:
    return torch.from_numpy(bfloat16_bits(values).view(np.int16)).view(torch.bfloat16)


def mimo_config(original: Original, n_mtp: int) -> dict[str, Any]:
    """The keys of MiMo-7B-RL's config.json, with this model's values."""
    fields: Mapping[str, Any] = original.fields
    return {
        "architectures": ["MiMoForCausalLM"],
        "tokenizer_class": ["Qwen2Tokenizer"],
        "auto_map": {
            "AutoConfig": "configuration_mimo.MiMoConfig",
            "AutoModel": "modeling_mimo.MiMoModel",
            "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
        },
        "attention_bias": True,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": MIMO.width,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "max_position_embeddings": fields["llama.context_length"],
        "max_window_layers": original.n_blocks,
        "model_type": "mimo",
        "num_attention_heads": MIMO.n_heads,
        "num_hidden_layers": original.n_blocks,
        "num_key_value_heads": MIMO.n_kv_heads,
        "num_nextn_predict_layers": n_mtp,
        "rms_norm_eps": EPSILON,
        "rope_theta": int(fields["llama.rope.freq_base"]),
        "sliding_window": fields["llama.context_length"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": fields["llama.vocab_size"],
    }


def dump(path: Path, value: object) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
