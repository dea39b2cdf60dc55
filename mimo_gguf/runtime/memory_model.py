"""What a run will occupy, part by part and device by device, from a GGUF's header alone: no llama.cpp, a few ms.

Everything is bytes that llama.cpp itself asks its backends for, at commit 0c1e57098:

- weights: each tensor padded to the device's alignment. The input embedding stays on the host, block i and the output
  layer go to the devices by `n_gpu_layers` and the split
  (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-model.cpp, `get_layer_buft_list`).
- KV cache: `n_ctx * head_count_kv * (row_bytes(type_k, key_length) + row_bytes(type_v, value_length))` per trunk block,
  on the block's device, and the same per MTP block for the MTP context; n_ctx is padded to 256
  (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-kv-cache.cpp).
- compute buffers: the worst-case graph replayed through ggml's own allocator rules (`memory_compute`), for the target
  and for the MTP context.
- output rows: logits of a batch and, with MTP, the hidden state of every token of it
  (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-context.cpp, `output_reserve`).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_SIZES

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import STEP35, Geometry, block_number, read_geometry
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, row_bytes
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.runtime.memory_allocator import CPU_TRAITS, DeviceTraits
from mimo_gguf.runtime.memory_compute import compute_buffers
from mimo_gguf.runtime.memory_graph import GraphSettings

CONTEXT_STEP: Final = 256  # llama.cpp rounds n_ctx up to a multiple
ALL_LAYERS: Final = -1
MTP_N_UBATCH: Final = 64  # what a session gives the MTP context, unless more conversations than that draft together
MOST_SEQUENCES: Final = 256  # LLAMA_MAX_SEQ
# Types llama.cpp can store a KV cache in (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/common/arg.cpp).
KV_TYPES: Final = (
    GgmlType.F32, GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.IQ4_NL,
    GgmlType.Q5_0, GgmlType.Q5_1,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A named amount of memory, and what it consists of. A part with parts is their sum."""

    name: str
    n_bytes: int
    parts: tuple[Part, ...] = ()

    def find(self, name: str) -> int:
        """Bytes of the parts called `name` anywhere below (0 where there is none)."""
        if self.name == name:
            return self.n_bytes
        return sum(part.find(name) for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"name": self.name, "bytes": self.n_bytes}
        if self.parts:
            document["parts"] = [part.as_json() for part in self.parts]
        return document


def group(name: str, parts: Iterable[Part]) -> Part:
    """A part that is the sum of those of `parts` that are not empty."""
    kept = tuple(part for part in parts if part.n_bytes)
    return Part(name, sum(part.n_bytes for part in kept), kept)


@dataclass(frozen=True, slots=True, eq=False)  # an identity, so that what follows from it can be cached by it
class ModelSizes:
    """What the model says about its memory: geometry, and every tensor's name, type and shape."""

    label: str
    geometry: Geometry
    tensors: tuple[TensorInfo, ...]

    @property
    def has_mtp(self) -> bool:
        """Whether llama.cpp can run an MTP context on it."""
        return self.geometry.architecture == STEP35 and self.geometry.n_mtp > 0

    @property
    def file_bytes(self) -> int:
        return sum(info.n_bytes for info in self.tensors)


def model_sizes(model: GgufFile) -> ModelSizes:
    """Sizes of an opened GGUF.

    Raises:
        GgufError: not a MiMo file, or a metadata key is missing.
    """
    infos = model.infos()
    return ModelSizes(str(model.path), read_geometry(model.metadata, infos, where=str(model.path)), infos)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How the model is to be run, in llama.cpp's words; the defaults are those of this package's chat.

    Attributes:
        n_ctx: tokens of context; for `n_seq_max` conversations together.
        kv_unified: all conversations share one buffer of cells (this package's way), instead of having one each.
        n_outputs_max: rows of logits a batch may ask for; 0 means n_batch, llama.cpp's default.
        n_gpu_layers: layers on the devices, the output layer first, then blocks from the last; -1 all.
        tensor_split: share of each device; empty means by free memory.
        mtp_n_ubatch, mtp_n_outputs_max: the same for the MTP context.
    """

    n_ctx: int
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 1
    kv_unified: bool = True
    n_outputs_max: int = 4
    type_k: GgmlType = GgmlType.F16
    type_v: GgmlType = GgmlType.F16
    flash_attn: bool = True
    mtp: bool = True
    mtp_n_ubatch: int = MTP_N_UBATCH
    mtp_n_outputs_max: int = 1
    n_gpu_layers: int = ALL_LAYERS
    tensor_split: tuple[float, ...] = ()

    @property
    def n_ctx_seq(self) -> int:
        """Tokens of context of one conversation, as llama.cpp rounds them."""
        total = padded(self.n_ctx, CONTEXT_STEP)
        return padded(total // self.n_seq_max, CONTEXT_STEP)

    @property
    def n_cells(self) -> int:
        """Cells of the KV cache."""
        return self.n_ctx_seq * self.n_seq_max

    @property
    def n_ctx_asked(self) -> int:
        """The n_ctx that llama.cpp is given: of several conversations the rounded shares together."""
        return self.n_cells if self.n_seq_max > 1 else self.n_ctx


@dataclass(frozen=True, slots=True)
class Placement:
    """A device to plan for: how its buffers behave, and its free memory (which decides the default split)."""

    name: str
    free_bytes: int
    traits: DeviceTraits = CPU_TRAITS


HOST: Final = Placement("host", 0)


def require_kv_type(kind: GgmlType) -> None:
    """Raises UsageError where llama.cpp has no KV cache of this type."""
    if kind not in KV_TYPES:
        raise UsageError(
            f"llama.cpp has no KV cache of type {kind.name}",
            hint="one of: " + ", ".join(t.name.lower() for t in KV_TYPES),
        )


def check_settings(model: ModelSizes, settings: RunSettings) -> None:
    """Raises UsageError where llama.cpp would refuse the settings."""
    if settings.n_ctx < 1 or settings.n_ubatch < 1 or settings.n_batch < 1 or settings.n_seq_max < 1:
        raise UsageError("context, batch, ubatch and parallel must be at least 1", hint="for example --ctx 8192")
    if settings.n_seq_max > MOST_SEQUENCES:
        raise UsageError(
            f"{settings.n_seq_max} conversations at a time", hint=f"llama.cpp has {MOST_SEQUENCES} at most"
        )
    if settings.n_ctx > 1 << 24:
        raise UsageError(
            f"a context of {settings.n_ctx} tokens is beyond any model",
            hint=f"the model was trained for {model.geometry.context_length}",
        )
    if settings.n_ubatch > 1 << 20:
        raise UsageError(f"{settings.n_ubatch} tokens at a time", hint="for example --ubatch 512")
    for name, kind, length in (
        ("K", settings.type_k, model.geometry.key_length),
        ("V", settings.type_v, model.geometry.value_length),
    ):
        require_kv_type(kind)
        if length % GGML_QUANT_SIZES[kind][0]:
            raise UsageError(f"{name} heads of {length} cannot be stored as {kind.name}", hint="use --kv-type f16")
    if settings.type_v not in FLOAT_TYPES and not settings.flash_attn:
        raise UsageError(
            f"a V cache of type {settings.type_v.name} needs flash attention", hint="leave --no-flash-attn out"
        )


def predict_memory(
    model: ModelSizes, settings: RunSettings, devices: Sequence[Placement] = (), host: Placement = HOST
) -> tuple[Part, ...]:
    """What llama.cpp asks of each device: one tree per device in `devices`, then the host's.

    Args:
        devices: the accelerators in llama.cpp's order; empty for a run on the CPU alone.

    Raises:
        UsageError: settings that llama.cpp would refuse.
    """
    check_settings(model, settings)
    homes = layer_homes(model.geometry, settings, devices)
    places = (*devices, host)
    contexts = _context_names(model, settings)
    weights = _weights(model, settings, homes, places)
    compute = {name: _compute(model, settings, homes, places, is_mtp=name == "MTP") for name in contexts}
    trees = []
    for index, place in enumerate(places):
        is_host = index == len(devices)
        kv = (Part(name, _kv_bytes(model, settings, homes, index, is_mtp=name == "MTP")) for name in contexts)
        parts = [
            group("weights", weights[index]),
            group("KV cache", kv),
            group("compute buffers", (Part(name, compute[name][index]) for name in contexts)),
        ]
        if is_host:
            parts.append(group("output rows", _output_rows(model, settings, contexts)))
        trees.append(group(place.name, parts))
    return tuple(trees)


def layer_homes(geometry: Geometry, settings: RunSettings, devices: Sequence[Placement]) -> list[int]:
    """Index of the device of each block, then of the output layer; len(devices) is the host.

    llama.cpp's rule: the last n_gpu_layers of (blocks..., output) go to the devices, dealt out by the normalised
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
    """Bytes of weights and cache that come with each layer (blocks, then the output layer) on such a device."""
    g, held, cell = model.geometry, _placed_weights(model, traits, settings.mtp), _cell_bytes(model, settings)
    caches = [cell if block < g.n_trunk or (settings.mtp and model.has_mtp) else 0 for block in range(g.block_count)]
    blocks = [weights + settings.n_cells * cache for weights, cache in zip(held.blocks, caches, strict=True)]
    return [*blocks, held.output + held.tied]


def padded(n: int, step: int) -> int:
    """`n` rounded up to a multiple of `step`."""
    return -(-n // step) * step


def _context_names(model: ModelSizes, settings: RunSettings) -> tuple[str, ...]:
    return ("target", "MTP") if settings.mtp and model.has_mtp else ("target",)


# Of an MTP block, what llama.cpp loads even when MTP is off: tensors the loader asks for without the skip flag
# (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/step35.cpp, load_block_mtp).
_LOADED_WITHOUT_MTP: Final = (".ffn_gate.", ".ffn_up.", ".ffn_down.", ".nextn.shared_head_norm.")


def _weights(
    model: ModelSizes, settings: RunSettings, homes: Sequence[int], places: Sequence[Placement]
) -> list[list[Part]]:
    n_trunk = model.geometry.n_trunk
    host = len(places) - 1
    trees = []
    for index, place in enumerate(places):
        held = _placed_weights(model, place.traits, settings.mtp)
        blocks = [n_bytes if home == index else 0 for n_bytes, home in zip(held.blocks, homes, strict=False)]
        output = (held.output if homes[-1] == index else 0) + (held.tied if homes[-1] == index != host else 0)
        trees.append(
            [
                Part("input embedding", held.embedding if index == host else 0),
                Part("blocks", sum(blocks[:n_trunk])),
                Part("MTP", sum(blocks[n_trunk:])),
                Part("output", output),
            ]
        )
    return trees


@dataclass(frozen=True, slots=True)
class _PlacedWeights:
    """Bytes the weights take on one kind of device; `tied`: a copy of the embedding where there is no output matrix."""

    blocks: tuple[int, ...]
    embedding: int
    output: int
    tied: int


@lru_cache(maxsize=64)
def _placed_weights(model: ModelSizes, traits: DeviceTraits, mtp: bool) -> _PlacedWeights:
    blocks = [0] * model.geometry.block_count
    embedding = output = tied = 0
    for info in model.tensors:
        block = block_number(info.name)
        n_bytes = _placed_bytes(info, traits)
        if block is not None:
            is_skipped = block >= model.geometry.n_trunk and not mtp
            if not is_skipped or any(text in info.name for text in _LOADED_WITHOUT_MTP):
                blocks[block] += n_bytes
        elif info.name.startswith("token_embd"):
            embedding += n_bytes
            tied += padded(info.n_bytes, traits.alignment)
        else:
            output += n_bytes
    has_output = any(info.name == "output.weight" for info in model.tensors)
    return _PlacedWeights(tuple(blocks), embedding, output, 0 if has_output else tied)


def _placed_bytes(info: TensorInfo, traits: DeviceTraits) -> int:
    n_bytes = info.n_bytes
    rest = info.n_columns % _ROW_PADDING
    if traits.is_cuda_like and rest and info.ggml_type not in FLOAT_TYPES:
        n_bytes += row_bytes(info.ggml_type, _ROW_PADDING - rest)
    return padded(n_bytes, traits.alignment)


_ROW_PADDING: Final = 512  # weights; what CUDA-like backends pad the last row of a quantized matrix to


def _kv_bytes(model: ModelSizes, settings: RunSettings, homes: Sequence[int], index: int, *, is_mtp: bool) -> int:
    g = model.geometry
    blocks = range(g.n_trunk, g.block_count) if is_mtp else range(g.n_trunk)
    return settings.n_cells * _cell_bytes(model, settings) * sum(homes[block] == index for block in blocks)


def _cell_bytes(model: ModelSizes, settings: RunSettings) -> int:
    """What one token takes in the cache of one block."""
    g = model.geometry
    k_row = row_bytes(settings.type_k, g.head_count_kv * g.key_length)
    return k_row + row_bytes(settings.type_v, g.head_count_kv * g.value_length)


def _compute(
    model: ModelSizes, settings: RunSettings, homes: Sequence[int], places: Sequence[Placement], *, is_mtp: bool
) -> list[int]:
    n_batch = min(settings.n_batch, settings.n_ctx_asked)  # llama.cpp compares before it rounds n_ctx up
    n_ubatch = settings.mtp_n_ubatch if is_mtp else min(settings.n_ubatch, n_batch)
    n_outputs_max = settings.mtp_n_outputs_max if is_mtp else (settings.n_outputs_max or n_batch)
    n_tokens = padded(min(settings.n_cells, n_ubatch), settings.n_seq_max)
    graph_settings = GraphSettings(
        n_tokens=n_tokens,
        n_outputs=min(n_tokens, max(n_outputs_max, settings.n_seq_max)),
        n_kv=settings.n_cells if settings.kv_unified else settings.n_ctx_seq,
        k_is_quantized=settings.type_k not in FLOAT_TYPES,
        v_is_quantized=settings.type_v not in FLOAT_TYPES,
        k_is_f16=settings.type_k is GgmlType.F16,
        v_is_f16=settings.type_v is GgmlType.F16,
        flash_attn=settings.flash_attn,
        layer_home=tuple(homes[:-1]),
        output_home=homes[-1],
        host=len(places) - 1,
        is_fully_offloaded=settings.n_gpu_layers < 0 or settings.n_gpu_layers > model.geometry.block_count,
    )
    return compute_buffers(model, graph_settings, tuple(place.traits for place in places), is_mtp=is_mtp)


def _output_rows(model: ModelSizes, settings: RunSettings, contexts: Sequence[str]) -> Iterable[Part]:
    """Copies of a batch's results in host memory. They grow to what a batch asks for; the largest is counted."""
    g = model.geometry
    n_batch = min(settings.n_batch, settings.n_ctx_asked)
    rows = {"target": settings.n_outputs_max or n_batch, "MTP": settings.mtp_n_outputs_max}
    for name in contexts:
        floats = max(rows[name], settings.n_seq_max) * g.vocab_size
        if "MTP" in contexts:
            floats += g.embedding_length * (n_batch if name == "target" else rows[name])
        yield Part(name, 4 * floats)
