"""MiMo-7B's full geometry as GGUF headers without data: what memory planning is tested and measured on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gguf import GGUFValueType

from mimo_gguf.core.geometry import QWEN2, STEP35, block_number, read_geometry
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.core.model_source import MetaValue, TensorInfo, array, float32, string, uint32

WIDTH, FFN, VOCAB, KV, N_TRUNK = 4096, 11008, 151680, 1024, 36
FILE_TYPES = ("F16", "Q8_0", "Q6_K", "Q4_K_M")


def metadata(layout: str, n_mtp: int = 1, n_trunk: int = N_TRUNK) -> dict[str, MetaValue]:
    n_mtp = n_mtp if layout == STEP35 else 0
    p = f"{layout}."
    entries = {
        "general.architecture": string(layout),
        p + "block_count": uint32(n_trunk + n_mtp),
        p + "context_length": uint32(32768),
        p + "embedding_length": uint32(WIDTH),
        p + "feed_forward_length": uint32(FFN),
        p + "attention.head_count": uint32(32),
        p + "attention.head_count_kv": uint32(8),
        p + "attention.key_length": uint32(128),
        p + "attention.value_length": uint32(128),
        p + "attention.layer_norm_rms_epsilon": float32(1e-5),
        p + "rope.freq_base": float32(640000.0),
        p + "vocab_size": uint32(VOCAB),
        "tokenizer.ggml.model": string("none"),
    }
    if layout == STEP35:
        entries |= {
            p + "nextn_predict_layers": uint32(n_mtp),
            p + "rope.dimension_count": uint32(256),
            p + "rope.dimension_count_swa": uint32(128),
            p + "rope.freq_base_swa": float32(640000.0),
            p + "attention.sliding_window_pattern": array(
                GGUFValueType.BOOL, [i >= n_trunk for i in range(n_trunk + n_mtp)]
            ),
            p + "attention.sliding_window": uint32(1 << 20),
            p + "expert_feed_forward_length": uint32(FFN),
        }
    return entries


def tensors(layout: str, file_type: str, n_mtp: int = 1, n_trunk: int = N_TRUNK) -> tuple[TensorInfo, ...]:
    n_mtp = n_mtp if layout == STEP35 else 0

    def entries() -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "token_embd.weight", (VOCAB, WIDTH)
        for i in range(n_trunk + n_mtp):
            p = f"blk.{i}."
            for part, rows in (("q", WIDTH), ("k", KV), ("v", KV)):
                yield f"{p}attn_{part}.weight", (rows, WIDTH)
                yield f"{p}attn_{part}.bias", (rows,)
            yield p + "attn_output.weight", (WIDTH, WIDTH)
            yield p + "ffn_gate.weight", (FFN, WIDTH)
            yield p + "ffn_up.weight", (FFN, WIDTH)
            yield p + "ffn_down.weight", (WIDTH, FFN)
            for norm in ("attn_norm", "ffn_norm"):
                yield f"{p}{norm}.weight", (WIDTH,)
            if i >= n_trunk:
                yield p + "nextn.eh_proj.weight", (WIDTH, 2 * WIDTH)
                for norm in ("enorm", "hnorm", "shared_head_norm"):
                    yield f"{p}nextn.{norm}.weight", (WIDTH,)
        yield "output_norm.weight", (WIDTH,)
        yield "output.weight", (VOCAB, WIDTH)

    return tuple(TensorInfo(name, shape, _type_of(name, shape, file_type)) for name, shape in entries())


def _type_of(name: str, shape: tuple[int, ...], file_type: str) -> GgmlType:
    if len(shape) == 1:
        return GgmlType.F32
    if name == "output.weight" and file_type != "F16" and file_type != "Q8_0":
        return GgmlType.Q6_K
    if file_type != "Q4_K_M":
        return GgmlType[file_type]
    block = block_number(name)
    is_careful = "attn_v" in name or "ffn_down" in name
    if is_careful and block is not None and (block < 4 or block >= 31 or (block - 4) % 3 == 2):
        return GgmlType.Q6_K
    return GgmlType.Q4_K


def sizes(layout: str, file_type: str, n_mtp: int = 1, n_trunk: int = N_TRUNK) -> ModelSizes:
    infos = tensors(layout, file_type, n_mtp, n_trunk)
    geometry = read_geometry(metadata(layout, n_mtp, n_trunk), infos, where="full size")
    return ModelSizes(f"{layout} {file_type}", geometry, infos)


def write_header_only(path: Path, layout: str, file_type: str, n_mtp: int = 1, n_trunk: int = N_TRUNK) -> Path:
    """A GGUF of full size whose data is a hole: a few KB on disk."""
    placed = lay_out(metadata(layout, n_mtp, n_trunk), tensors(layout, file_type, n_mtp, n_trunk))
    with path.open("wb") as file:
        file.write(placed.header)
        file.truncate(placed.n_bytes)
    return path


__all__ = ["FILE_TYPES", "QWEN2", "STEP35", "metadata", "sizes", "tensors", "write_header_only"]
