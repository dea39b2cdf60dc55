"""Where llama.cpp puts each weight of a layer, and the bytes that it takes there.

A layer's weights lie on the layer's device, but for those that the device cannot compute with: a weight is tried with
512 rows (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-model-loader.cpp, weight_buft_supported). The
others are in the host's memory. The first device with memory of that kind decides how they are aligned there
(https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-model.cpp, make_cpu_buft_list).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from mimo_gguf.core.geometry import block_number
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, block_size, row_bytes
from mimo_gguf.core.kv_cache import padded
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.memory.allocator import CPU_TRAITS, DeviceTraits
from mimo_gguf.memory.arena import UNBOUNDED
from mimo_gguf.memory.graph import F32

EMBEDDING: Final = "token_embd.weight"
_TRIED_ROWS: Final = 512
_ROW_PADDING: Final = 512  # weights; CUDA-like backends pad the last row of a quantized matrix to a multiple of it
_AMX_OUTPUTS: Final = 32
_AMX_ADDS: Final = {GgmlType.Q8_0: 4, GgmlType.Q4_K: 4, GgmlType.Q5_K: 4, GgmlType.IQ4_XS: 2}  # bytes for each block
# The tensors of an MTP block that llama.cpp loads even if MTP is off: its loader has no skip flag for them
# (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/step35.cpp, load_block_mtp).
_LOADED_WITHOUT_MTP: Final = (".ffn_gate.", ".ffn_up.", ".ffn_down.", ".nextn.shared_head_norm.")


@dataclass(frozen=True, slots=True)
class PlacedWeights:
    """The bytes of each layer's weights in one place; `tied` is a copy of the embedding for a missing output matrix."""

    blocks: tuple[int, ...]
    embedding: int
    output: int
    tied: int


def takes(traits: DeviceTraits, info: TensorInfo, *, as_embedding: bool = False) -> bool:
    """Whether a device with these traits holds the weight of a layer that is placed on it.

    Args:
        as_embedding: it is only looked up, not multiplied with.
    """
    if traits.tensor_bytes == UNBOUNDED:
        return True
    if len(info.shape) == 1:
        widest = info.n_columns
    else:
        widest = _TRIED_ROWS * max(info.n_columns, 0 if as_embedding else info.n_rows)
    return max(info.n_bytes, F32 * widest) <= traits.tensor_bytes


def host_traits(devices: Sequence[DeviceTraits], traits: DeviceTraits = CPU_TRAITS) -> DeviceTraits:
    """The traits of the host's compute buffer, which lies in memory of the first device's kind, if it has one."""
    if not devices or devices[0].host_alignment is None:
        return traits
    return replace(traits, alignment=devices[0].host_alignment, chunk_bytes=devices[0].host_chunk_bytes)


def device_weights(model: ModelSizes, traits: DeviceTraits, *, mtp: bool) -> PlacedWeights:
    """The weights of each layer that a device holds if the layer is placed there."""
    return _placed(model, traits, None, mtp)


def host_weights(
    model: ModelSizes, home: DeviceTraits | None, devices: Sequence[DeviceTraits], host: DeviceTraits, *, mtp: bool
) -> PlacedWeights:
    """The weights of each layer that the host holds.

    Args:
        home: the traits of the device that the layer is placed on; None for the host.
        devices: those of all devices.
        host: those of the host.
    """
    if home is not None and home.tensor_bytes == UNBOUNDED:
        return PlacedWeights((0,) * model.geometry.block_count, 0, 0, 0)
    beside = next((traits for traits in devices if traits.host_alignment is not None), CPU_TRAITS)
    has_amx = host.has_amx and not any(traits.is_cuda_like for traits in devices)  # CUDA has memory of the host, too
    return _placed(model, home, replace(beside, has_amx=has_amx), mtp)


@lru_cache(maxsize=64)
def _placed(model: ModelSizes, home: DeviceTraits | None, host_of: DeviceTraits | None, mtp: bool) -> PlacedWeights:
    """The weights of layers on `home` that lie there or, with `host_of`, on the host beside such a device."""
    blocks = [0] * model.geometry.block_count
    embedding = output = tied = 0
    for info in model.tensors:
        block = block_number(info.name)
        is_embedding = info.name == EMBEDDING
        is_here = home is not None and takes(home, info)
        if host_of is not None:
            n_bytes = 0 if is_here else _host_bytes(info, host_of, as_embedding=is_embedding)
        else:
            n_bytes = _device_bytes(info, home or CPU_TRAITS) if is_here else 0
        if block is not None:
            is_skipped = block >= model.geometry.n_trunk and not mtp
            if not is_skipped or any(text in info.name for text in _LOADED_WITHOUT_MTP):
                blocks[block] += n_bytes
        elif is_embedding:
            embedding += n_bytes
            tied += n_bytes
        else:
            output += n_bytes
    has_output = any(info.name == "output.weight" for info in model.tensors)
    return PlacedWeights(tuple(blocks), embedding, output, 0 if has_output else tied)


def _device_bytes(info: TensorInfo, traits: DeviceTraits) -> int:
    n_bytes = info.n_bytes
    rest = info.n_columns % _ROW_PADDING
    if traits.is_cuda_like and rest and info.ggml_type not in FLOAT_TYPES:
        n_bytes += row_bytes(info.ggml_type, _ROW_PADDING - rest)
    return padded(n_bytes, traits.alignment)


def _host_bytes(info: TensorInfo, beside: DeviceTraits, *, as_embedding: bool) -> int:
    """A weight that the device beside could compute with lies in memory of its kind, any other in the CPU's own."""
    alignment = beside.host_alignment if takes(beside, info, as_embedding=as_embedding) else None
    if alignment is None and beside.has_amx and not as_embedding:
        return padded(amx_bytes(info), CPU_TRAITS.alignment)
    return padded(info.n_bytes, alignment or CPU_TRAITS.alignment)


def amx_bytes(info: TensorInfo) -> int:
    """The bytes of a weight on a CPU with AMX, which adds sums or unpacked scales to each block of some types.

    https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-cpu/amx/mmq.cpp, `get_row_size`. It takes
    matrices whose outputs can be divided by 32 (`supports_op` in amx.cpp beside it).
    """
    added = _AMX_ADDS.get(info.ggml_type, 0)
    if not added or len(info.shape) == 1 or info.n_rows % _AMX_OUTPUTS:
        return info.n_bytes
    return info.n_bytes + added * info.n_rows * (info.n_columns // block_size(info.ggml_type))


@lru_cache(maxsize=64)
def leaves_weights_of_blocks(model: ModelSizes, traits: DeviceTraits) -> bool:
    """Whether some weight of a block on such a device stays on the host."""
    blocks = (info for info in model.tensors if block_number(info.name) is not None)
    return not all(takes(traits, info) for info in blocks)
