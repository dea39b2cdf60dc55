"""Reading and writing the reference as a Hugging Face checkpoint folder, laid out as the published model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.reference.mimo import Mimo, RmsNorm

MIMO_TINY = Path(__file__).parents[2] / "examples" / "mimo-tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json")


def mimo_config(**changes: Any) -> dict[str, Any]:
    """A config.json with every key of the published one, in its order, and tiny numbers; `changes` replace or add."""
    config = {
        "architectures": ["MiMoForCausalLM"],
        "tokenizer_class": ["Qwen2Tokenizer"],
        "auto_map": {
            "AutoConfig": "configuration_mimo.MiMoConfig",
            "AutoModel": "modeling_mimo.MiMoModel",
            "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
        },
        "attention_dropout": 0.0,
        "bos_token_id": 987,
        "eos_token_id": 989,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 768,
        "max_position_embeddings": 2048,
        "max_window_layers": 3,
        "model_type": "mimo",
        "num_attention_heads": 4,
        "head_dim": 64,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 640000,
        "sliding_window": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 1024,
        "attention_bias": True,
        "num_nextn_predict_layers": 1,
    }
    return config | changes


def load_checkpoint(folder: Path) -> Mimo:
    """The model in `folder`, in float32 whatever its files hold."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Mimo(config)
    state: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        state |= {name: tensor.to(torch.float32) for name, tensor in load_file(shard).items()}
    model.load_state_dict(state)
    return model.eval()


def write_checkpoint(folder: Path, model: Mimo, *, dtype: torch.dtype = torch.bfloat16, shards: int = 2) -> None:
    """Writes config.json, `shards` safetensors files of `dtype` and, for more than one, their index.

    The last tensors (norm, MTP layers, lm_head) land in the last shard, as in the published checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    config = model.config | {"torch_dtype": str(dtype).removeprefix("torch.")}
    _write_json(folder / "config.json", config)
    parts = list(_split(tensors, shards))
    weight_map: dict[str, str] = {}
    for n, part in enumerate(parts, 1):
        name = "model.safetensors" if len(parts) == 1 else f"model-{n:05}-of-{len(parts):05}.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": _size_bytes(tensors)}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / "model.safetensors.index.json", index)


def random_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    seed: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    logit_scale: float = 3.0,
    shards: int = 2,
    tokenizer_from: Path | None = MIMO_TINY,
) -> Mimo:
    """Writes a checkpoint folder of random weights and returns the model as it reads back (float32).

    Norm gains are far from one and biases from zero, so that a converter that loses one is seen. `logit_scale` is
    about the standard deviation of the trunk's logits. The tokenizer files are copied from `tokenizer_from`; its
    vocabulary must fit the config's (the tiny model's needs 1009 rows).
    """
    model = Mimo(config)
    randomize(model, seed)
    ids = torch.arange(64) % config["vocab_size"]
    with torch.no_grad():
        scale = logit_scale / model.trunk(ids)[0].std()
        model.model.norm.weight *= scale
        for layer in getattr(model.model, "mtp_layers", ()):
            layer.final_layernorm.weight *= scale
    write_checkpoint(folder, model, dtype=dtype, shards=shards)
    if tokenizer_from is not None:
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer_from / name, folder / name)
    return load_checkpoint(folder)


def randomize(model: Mimo, seed: int) -> None:
    """Seeded weights: gains exp(N(0, 0.3^2)), the trunk's final norm's exp(N(0, 0.8^2)), biases N(0, 0.2^2),
    embeddings N(0, 1), matrices N(0, 1 / inputs).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.ndim == 2 and "embed_tokens" not in name:
                parameter /= parameter.shape[1] ** 0.5
            elif name.endswith(".bias"):
                parameter *= 0.2
            elif isinstance(model.get_submodule(name.rpartition(".")[0]), RmsNorm):
                parameter.mul_(0.8 if name == "model.norm.weight" else 0.3).exp_()


def _split(tensors: Mapping[str, Tensor], shards: int) -> Iterator[dict[str, Tensor]]:
    """Consecutive parts of about the same size, never empty."""
    total, done, part, left = _size_bytes(tensors), 0, {}, shards
    for name, tensor in tensors.items():
        part[name] = tensor
        done += tensor.nbytes
        if left > 1 and done >= total * (shards - left + 1) / shards:
            yield part
            part, left = {}, left - 1
    yield part


def _size_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
