"""The memory that a run will occupy on each device, part by part, from a GGUF's header alone, in some milliseconds.

llama.cpp is not needed. The sizes are the bytes that it asks of its backends, at commit 0c1e57098:

- weights: each tensor padded to the device's alignment. The input embedding stays on the host; blocks and output
  layer are placed on devices by `n_gpu_layers` and the split, but for tensors too large for the device (`weights`)
  (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-model.cpp, `get_layer_buft_list`).
- KV cache: `n_ctx * head_count_kv * (row_bytes(type_k, key_length) + row_bytes(type_v, value_length))` per trunk block,
  on the block's device, and the same per MTP block for the MTP context; n_ctx is padded to 256
  (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-kv-cache.cpp).
- compute buffers: the worst-case graph replayed through ggml's own allocator rules (`compute`), for the target
  and for the MTP context.
- output rows: logits of a batch and, with MTP, the hidden state of every token of it
  (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-context.cpp, `output_reserve`).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mimo_gguf.core.geometry import Geometry
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, row_bytes
from mimo_gguf.core.kv_cache import padded
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.memory.allocator import DeviceTraits
from mimo_gguf.memory.compute import compute_buffers
from mimo_gguf.memory.graph import F32, GraphSettings
from mimo_gguf.memory.parts import NO_CONTEXT, ContextBytes, DeviceMemory, WeightBytes
from mimo_gguf.memory.run import HOST, Placement, RunSettings, check_settings
from mimo_gguf.memory.weights import device_weights, host_traits, host_weights


def predict_memory(
    model: ModelSizes, settings: RunSettings, devices: Sequence[Placement] = (), host: Placement = HOST
) -> tuple[DeviceMemory, ...]:
    """The memory that llama.cpp asks of each device: one entry per device in `devices`, then the host's.

    Args:
        devices: the accelerators in llama.cpp's order; empty for a run on the CPU alone.

    Raises:
        UsageError: llama.cpp would refuse the settings.
    """
    check_settings(model, settings)
    drafts = settings.mtp and model.has_mtp
    homes = layer_homes(model.geometry, settings, devices)
    places = (*devices, replace(host, traits=host_traits([place.traits for place in devices], host.traits)))
    target = _compute(model, settings, homes, places, is_mtp=False)
    mtp = _compute(model, settings, homes, places, is_mtp=True) if drafts else [0] * len(places)
    return tuple(
        DeviceMemory(
            weights=_weights_on_host(model, settings, homes, places)
            if index == len(devices)
            else _weights(model, settings, homes, places, index),
            kv_cache=_kv_bytes(model, settings, homes, index, drafts=drafts),
            cache_tensor=settings.n_cells * max(_row_bytes(model, settings)) if index in homes[:-1] else 0,
            compute=ContextBytes(target[index], mtp[index]),
            output_rows=_output_rows(model, settings, drafts=drafts) if index == len(devices) else NO_CONTEXT,
        )
        for index in range(len(places))
    )


def layer_homes(geometry: Geometry, settings: RunSettings, devices: Sequence[Placement]) -> list[int]:
    """The index of each block's device, then of the output layer's; len(devices) stands for the host.

    llama.cpp's rule: the last n_gpu_layers of (blocks..., output) are placed on the devices by the normalised
    cumulative shares, in float32.
    """
    host = len(devices)
    n_layers = geometry.block_count + 1
    wanted = n_layers if settings.n_gpu_layers < 0 else min(settings.n_gpu_layers, n_layers)
    if not devices or not wanted:
        return [host] * n_layers
    shares = settings.tensor_split or tuple(float(max(device.free_bytes, 0)) for device in devices)
    if len(shares) != len(devices) or sum(shares) <= 0:
        shares = (1.0,) * len(devices)
    cumulative = np.cumsum(np.array(shares, np.float32), dtype=np.float32)
    points = (cumulative / cumulative[-1]).tolist()
    start = n_layers - wanted
    on_devices = [
        min(bisect.bisect_right(points, float(np.float32(i) / np.float32(wanted))), host - 1) for i in range(wanted)
    ]
    return [host] * start + on_devices


def layer_bytes(model: ModelSizes, settings: RunSettings, traits: DeviceTraits) -> list[int]:
    """The bytes of weights and cache of each layer (blocks, then the output layer) on a device with these traits."""
    g, held, cell = model.geometry, device_weights(model, traits, mtp=settings.mtp), sum(_row_bytes(model, settings))
    caches = [cell if block < g.n_trunk or (settings.mtp and model.has_mtp) else 0 for block in range(g.block_count)]
    blocks = [weights + settings.n_cells * cache for weights, cache in zip(held.blocks, caches, strict=True)]
    return [*blocks, held.output + held.tied]


def _weights(
    model: ModelSizes, settings: RunSettings, homes: Sequence[int], places: Sequence[Placement], index: int
) -> WeightBytes:
    n_trunk = model.geometry.n_trunk
    held = device_weights(model, places[index].traits, mtp=settings.mtp)
    blocks = [n_bytes if home == index else 0 for n_bytes, home in zip(held.blocks, homes, strict=False)]
    has_output = homes[-1] == index
    return WeightBytes(
        blocks=sum(blocks[:n_trunk]),
        mtp=sum(blocks[n_trunk:]),
        output=held.output + held.tied if has_output else 0,
    )


def _weights_on_host(
    model: ModelSizes, settings: RunSettings, homes: Sequence[int], places: Sequence[Placement]
) -> WeightBytes:
    """The host holds the weights of its own layers, the input embedding, and what the devices cannot compute with."""
    n_trunk = model.geometry.n_trunk
    devices = [place.traits for place in places[:-1]]
    host = places[-1].traits
    held = [host_weights(model, traits, devices, host, mtp=settings.mtp) for traits in (*devices, None)]
    blocks = [held[home].blocks[block] for block, home in enumerate(homes[:-1])]
    return WeightBytes(
        input_embedding=held[-1].embedding,
        blocks=sum(blocks[:n_trunk]),
        mtp=sum(blocks[n_trunk:]),
        output=held[homes[-1]].output,
    )


def _kv_bytes(
    model: ModelSizes, settings: RunSettings, homes: Sequence[int], index: int, *, drafts: bool
) -> ContextBytes:
    g = model.geometry
    per_block = settings.n_cells * sum(_row_bytes(model, settings))
    of_trunk, of_mtp = homes[: g.n_trunk], homes[g.n_trunk : g.block_count] if drafts else ()
    return ContextBytes(per_block * of_trunk.count(index), per_block * of_mtp.count(index))


def _row_bytes(model: ModelSizes, settings: RunSettings) -> tuple[int, int]:
    """The bytes of one token's K and V in the cache of one block."""
    g = model.geometry
    k_row = row_bytes(settings.type_k, g.head_count_kv * g.key_length)
    return k_row, row_bytes(settings.type_v, g.head_count_kv * g.value_length)


def _compute(
    model: ModelSizes, settings: RunSettings, homes: Sequence[int], places: Sequence[Placement], *, is_mtp: bool
) -> list[int]:
    n_batch = min(settings.n_batch, settings.n_ctx_asked)  # llama.cpp compares before it rounds n_ctx up
    n_ubatch = settings.mtp_n_ubatch if is_mtp else min(settings.n_ubatch, n_batch)
    n_outputs_max = settings.mtp_n_outputs_max if is_mtp else (settings.n_outputs_max or n_batch)
    n_rows = min(settings.n_cells, n_ubatch)
    n_tokens = padded(n_rows, settings.n_seq_max)
    n_kv = settings.n_cells if settings.kv_unified or is_mtp else settings.n_ctx_seq
    k_row, v_row = _row_bytes(model, settings)
    graph_settings = GraphSettings(
        n_tokens=n_tokens,
        n_outputs=min(n_rows, max(n_outputs_max, settings.n_seq_max)),
        n_kv=n_kv,
        n_streams=settings.n_cells // n_kv,
        k_is_quantized=settings.type_k not in FLOAT_TYPES,
        v_is_quantized=settings.type_v not in FLOAT_TYPES,
        k_is_f16=settings.type_k is GgmlType.F16,
        v_is_f16=settings.type_v is GgmlType.F16,
        k_bytes=settings.n_cells * k_row,
        v_bytes=settings.n_cells * v_row,
        flash_attn=settings.flash_attn,
        layer_home=tuple(homes[:-1]),
        output_home=homes[-1],
        host=len(places) - 1,
        is_fully_offloaded=settings.n_gpu_layers < 0 or settings.n_gpu_layers > model.geometry.block_count,
    )
    return compute_buffers(model, graph_settings, tuple(place.traits for place in places), is_mtp=is_mtp)


def _output_rows(model: ModelSizes, settings: RunSettings, *, drafts: bool) -> ContextBytes:
    """The bytes of the copies of a batch's results in host memory, for the largest batch."""
    g = model.geometry
    n_batch = min(settings.n_batch, settings.n_ctx_asked)
    n_rows = max(settings.n_outputs_max or n_batch, settings.n_seq_max)
    if not drafts:
        return ContextBytes(F32 * n_rows * g.vocab_size)
    n_mtp_rows = max(settings.mtp_n_outputs_max, settings.n_seq_max)
    return ContextBytes(
        F32 * (n_rows * g.vocab_size + n_batch * g.embedding_length),
        F32 * (n_mtp_rows * g.vocab_size + settings.mtp_n_outputs_max * g.embedding_length),
    )
