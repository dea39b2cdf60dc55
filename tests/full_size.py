"""MiMo-7B's full geometry as GGUF headers without data: what memory planning is tested and measured on."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFValueType

from mimo_gguf.core.geometry import QWEN2, STEP35, block_number, read_geometry
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.core.model_source import MetaValue, TensorInfo, array, float32, string, uint32
from mimo_gguf.core.published_model import published_model

FILE_TYPES = ("F16", "Q8_0", "Q6_K", "Q4_K_M")
N_TRUNK = published_model().geometry.n_trunk


def metadata(layout: str, n_mtp: int = 1, n_trunk: int = N_TRUNK) -> dict[str, MetaValue]:
    g = published_model().geometry
    n_mtp = n_mtp if layout == STEP35 else 0
    p = f"{layout}."
    entries = {
        "general.architecture": string(layout),
        p + "block_count": uint32(n_trunk + n_mtp),
        p + "context_length": uint32(g.context_length),
        p + "embedding_length": uint32(g.embedding_length),
        p + "feed_forward_length": uint32(g.feed_forward_length),
        p + "attention.head_count": uint32(g.head_count),
        p + "attention.head_count_kv": uint32(g.head_count_kv),
        p + "attention.key_length": uint32(g.key_length),
        p + "attention.value_length": uint32(g.value_length),
        p + "attention.layer_norm_rms_epsilon": float32(g.rms_epsilon),
        p + "rope.freq_base": float32(g.rope_freq_base),
        p + "vocab_size": uint32(g.vocab_size),
        "tokenizer.ggml.model": string("none"),
    }
    if layout == STEP35:
        entries |= {
            p + "nextn_predict_layers": uint32(n_mtp),
            p + "rope.dimension_count": uint32(2 * g.key_length),
            p + "rope.dimension_count_swa": uint32(g.key_length),
            p + "rope.freq_base_swa": float32(g.rope_freq_base),
            p + "attention.sliding_window_pattern": array(
                GGUFValueType.BOOL, [i >= n_trunk for i in range(n_trunk + n_mtp)]
            ),
            p + "attention.sliding_window": uint32(1 << 20),
            p + "expert_feed_forward_length": uint32(g.feed_forward_length),
        }
    return entries


def tensors(layout: str, file_type: str, n_mtp: int = 1, n_trunk: int = N_TRUNK) -> tuple[TensorInfo, ...]:
    """The published tensors, with so many blocks: those of the trunk like its first, those of MTP like the one."""
    n_mtp = n_mtp if layout == STEP35 else 0
    first, mtp = _of_block(0), _of_block(N_TRUNK)
    named = {info.name: info.shape for info in published_model().tensors if block_number(info.name) is None}
    for i in range(n_trunk + n_mtp):
        named |= {f"blk.{i}.{name}": shape for name, shape in (first if i < n_trunk else mtp).items()}
    return tuple(TensorInfo(name, shape, _type_of(name, shape, file_type)) for name, shape in named.items())


def _of_block(number: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a published block's tensors, by their names in the block."""
    start = f"blk.{number}."
    tensors = published_model().tensors
    return {info.name.removeprefix(start): info.shape for info in tensors if info.name.startswith(start)}


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
