"""MiMo-7B as published: its geometry and tensors, for planning before there is a file."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mimo_gguf.core.geometry import STEP35, Geometry
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.runtime.memory_model import ModelSizes


@cache
def published_model() -> ModelSizes:
    """MiMo-7B as published, all matrices in BF16, with its MTP layer: for planning before there is a file."""
    with Path(__file__).with_name("mimo_7b.toml").open("rb") as file:
        data = tomllib.load(file)
    geometry = Geometry(
        architecture=STEP35,
        block_count=data["n_trunk"] + data["n_mtp"],
        n_mtp=data["n_mtp"],
        value_length=data["key_length"],
        **{
            key: data[key]
            for key in (
                "context_length", "embedding_length", "feed_forward_length", "head_count", "head_count_kv",
                "key_length", "rope_freq_base", "rms_epsilon", "vocab_size",
            )
        },
    )  # fmt: skip
    return ModelSizes(data["name"], geometry, tuple(_published_tensors(geometry)))


def _published_tensors(g: Geometry) -> Iterator[TensorInfo]:
    width, kv_width = g.embedding_length, g.head_count_kv * g.key_length

    def matrix(name: str, rows: int, columns: int) -> TensorInfo:
        return TensorInfo(f"{name}.weight", (rows, columns), GgmlType.BF16)

    def vector(name: str, length: int) -> TensorInfo:
        return TensorInfo(name, (length,), GgmlType.F32)

    yield matrix("token_embd", g.vocab_size, width)
    for block in range(g.block_count):
        p = f"blk.{block}."
        for part, rows in (("q", g.head_count * g.key_length), ("k", kv_width), ("v", kv_width)):
            yield matrix(f"{p}attn_{part}", rows, width)
            yield vector(f"{p}attn_{part}.bias", rows)
        yield matrix(p + "attn_output", width, g.head_count * g.value_length)
        yield matrix(p + "ffn_gate", g.feed_forward_length, width)
        yield matrix(p + "ffn_up", g.feed_forward_length, width)
        yield matrix(p + "ffn_down", width, g.feed_forward_length)
        norms = ["attn_norm", "ffn_norm"]
        if block >= g.n_trunk:
            yield matrix(p + "nextn.eh_proj", width, 2 * width)
            norms += ["nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm"]
        for norm in norms:
            yield vector(f"{p}{norm}.weight", width)
    yield vector("output_norm.weight", width)
    yield matrix("output", g.vocab_size, width)
