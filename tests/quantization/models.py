"""GGUF models for the quantizer's tests: any geometry, either layout, with random weights or as a hollow file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from mimo_gguf.core.geometry import QWEN2, STEP35
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import Metadata, MetaValue, TensorInfo, array, float32, string, uint32
from mimo_gguf.core.published_model import published_model


@dataclass(frozen=True)
class Model:
    """A MiMo of any size. `n_mtp` counts only in the step35 layout."""

    layout: str = STEP35
    n_trunk: int = 2
    n_mtp: int = 1
    width: int = 256
    ffn: int = 512
    vocab: int = 288
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 64
    tied: bool = False
    ggml_type: GgmlType = GgmlType.BF16

    @property
    def block_count(self) -> int:
        return self.n_trunk + (self.n_mtp if self.layout == STEP35 else 0)


def _published() -> Model:
    g = published_model().geometry
    return Model(
        n_trunk=g.n_trunk, n_mtp=g.n_mtp, width=g.embedding_length, ffn=g.feed_forward_length, vocab=g.vocab_size,
        heads=g.head_count, kv_heads=g.head_count_kv, head_dim=g.key_length, ggml_type=GgmlType.F16,
    )  # fmt: skip


MIMO_7B = _published()


def metadata(model: Model) -> dict[str, MetaValue]:
    p = f"{model.layout}."
    entries = {
        "general.architecture": string(model.layout),
        "general.name": string("Random"),
        p + "block_count": uint32(model.block_count),
        p + "context_length": uint32(512),
        p + "embedding_length": uint32(model.width),
        p + "feed_forward_length": uint32(model.ffn),
        p + "attention.head_count": uint32(model.heads),
        p + "attention.head_count_kv": uint32(model.kv_heads),
        p + "attention.key_length": uint32(model.head_dim),
        p + "attention.value_length": uint32(model.head_dim),
        p + "attention.layer_norm_rms_epsilon": float32(1e-5),
        p + "rope.freq_base": float32(640000.0),
        p + "vocab_size": uint32(model.vocab),
        "tokenizer.ggml.model": string("none"),
    }
    if model.layout == STEP35:
        is_mtp = [i >= model.n_trunk for i in range(model.block_count)]
        entries |= {
            p + "nextn_predict_layers": uint32(model.n_mtp),
            p + "rope.dimension_count": uint32(2 * model.head_dim),
            p + "rope.dimension_count_swa": uint32(model.head_dim),
            p + "rope.freq_base_swa": float32(640000.0),
            p + "attention.sliding_window_pattern": array(GGUFValueType.BOOL, is_mtp),
            p + "attention.sliding_window": uint32(1 << 20),
            p + "expert_feed_forward_length": uint32(model.ffn),
        }
    return entries


def shapes(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    yield "token_embd.weight", (model.vocab, model.width)
    for i in range(model.block_count):
        p = f"blk.{i}."
        yield p + "attn_norm.weight", (model.width,)
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{p}attn_{part}.weight", (rows, model.width)
            yield f"{p}attn_{part}.bias", (rows,)
        yield p + "attn_output.weight", (model.width, q)
        yield p + "ffn_norm.weight", (model.width,)
        yield p + "ffn_gate.weight", (model.ffn, model.width)
        yield p + "ffn_up.weight", (model.ffn, model.width)
        yield p + "ffn_down.weight", (model.width, model.ffn)
        if i >= model.n_trunk:
            yield p + "nextn.eh_proj.weight", (model.width, 2 * model.width)
            for norm in ("enorm", "hnorm", "shared_head_norm"):
                yield f"{p}nextn.{norm}.weight", (model.width,)
    yield "output_norm.weight", (model.width,)
    if not model.tied:
        yield "output.weight", (model.vocab, model.width)


def infos(model: Model) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name, shape, model.ggml_type if len(shape) > 1 else GgmlType.F32) for name, shape in shapes(model)
    )


def write_hollow(path: Path, model: Model) -> Path:
    """Header and tensor table; the data is a hole that takes no disk."""
    placed = lay_out(metadata(model), infos(model))
    with path.open("wb") as file:
        file.write(placed.header)
        file.truncate(placed.n_bytes)
    return path


def write_random(path: Path, model: Model, seed: int = 0, extra: Metadata | None = None) -> Path:
    """Heavy-tailed random weights: every block has outliers."""
    rng = np.random.default_rng(seed)
    tensors = infos(model)
    placed = lay_out({**metadata(model), **(extra or {})}, tensors)
    with path.open("wb") as file:
        file.write(placed.header)
        for info, offset in zip(tensors, placed.offsets, strict=True):
            file.seek(offset)
            file.write(stored(rng.standard_t(3, info.n_elements).astype(np.float32) * 0.05, info.ggml_type))
        file.truncate(placed.n_bytes)
    return path


def stored(values: NDArray[np.float32], ggml_type: GgmlType) -> bytes:
    """Bytes of float weights as a file stores them."""
    if ggml_type is GgmlType.BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(np.float16 if ggml_type is GgmlType.F16 else np.float32).tobytes()


__all__ = [
    "MIMO_7B",
    "QWEN2",
    "STEP35",
    "Model",
    "infos",
    "metadata",
    "replace",
    "stored",
    "write_hollow",
    "write_random",
]
