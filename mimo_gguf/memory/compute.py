"""The compute buffers of one context: its worst-case graph (`graph`) under ggml's rules (`allocator`).

A replay needs about a millisecond, because blocks that only repeat others are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from mimo_gguf.core.geometry import Geometry, block_number
from mimo_gguf.memory.allocator import PIPELINE_COPIES, DeviceTraits, compute_bytes
from mimo_gguf.memory.arena import UNBOUNDED
from mimo_gguf.memory.graph import Graph, GraphSettings, mtp_graph, trunk_graph
from mimo_gguf.memory.weights import EMBEDDING, leaves_weights_of_blocks, takes

if TYPE_CHECKING:
    from mimo_gguf.core.model_sizes import ModelSizes
    from mimo_gguf.core.model_source import TensorInfo


def compute_buffers(
    model: ModelSizes, settings: GraphSettings, traits: tuple[DeviceTraits, ...], *, is_mtp: bool
) -> list[int]:
    """The bytes of compute buffer on each device.

    Args:
        traits: those of each device, the host's last.
        is_mtp: whether the context is the one for the MTP blocks.
    """
    on_host = settings.host in (*settings.layer_home, settings.output_home)
    copies_weights = on_host and any(device.offload_min_batch is not None for device in traits)
    has_limits = any(device.tensor_bytes < UNBOUNDED for device in traits)
    source = model if copies_weights or has_limits else None  # only then do the weights' sizes matter
    kept = _deciding_blocks(model, settings, traits, copies_weights)
    return list(_replay(model.geometry, source, kept, settings, traits, is_mtp))


_REPEATS: Final = 3  # equal stretches of blocks, after which every further one reuses the same memory
_LONGEST_STRETCH: Final = 3  # blocks; in Q4_K_M every third has other types


def _deciding_blocks(
    model: ModelSizes, settings: GraphSettings, traits: Sequence[DeviceTraits], copies_weights: bool
) -> tuple[int, ...]:
    """The blocks that decide the sizes: all but those that only repeat the ones before them.

    Two blocks are equal if they lie on the same device and have the same types; types count if weights may be copied.
    """
    counts_types = [leaves_weights_of_blocks(model, each) for each in traits]
    counts_types[settings.host] = copies_weights
    kinds = _block_kinds(model) if any(counts_types) else ()
    keys = [
        (home, kinds[block] if counts_types[home] else "")
        for block, home in enumerate(settings.layer_home[: model.geometry.n_trunk])
    ]
    kept: list[int] = []
    for block in range(len(keys)):
        kept.append(block)
        for length in range(1, _LONGEST_STRETCH + 1):
            last = [keys[number] for number in kept[-(_REPEATS + 1) * length :]]
            if len(last) == (_REPEATS + 1) * length and last[length:] == last[:-length]:
                del kept[-length:]
                break
    return (*kept, *range(model.geometry.n_trunk, model.geometry.block_count))


@lru_cache(maxsize=64)
def _block_kinds(model: ModelSizes) -> tuple[str, ...]:
    """The types of each block's tensors, as text."""
    kinds = [""] * model.geometry.block_count
    for info in model.tensors:
        block = block_number(info.name)
        if block is not None:
            kinds[block] += f" {info.ggml_type.name}"
    return tuple(kinds)


@lru_cache(maxsize=64)
def _tensors(model: ModelSizes) -> dict[str, TensorInfo]:
    infos = {info.name: info for info in model.tensors}
    if EMBEDDING in infos:
        infos.setdefault("output.weight", infos[EMBEDDING])
    return infos


@lru_cache(maxsize=512)
def _replay(
    geometry: Geometry,
    source: ModelSizes | None,
    kept: tuple[int, ...],
    settings: GraphSettings,
    traits: tuple[DeviceTraits, ...],
    is_mtp: bool,
) -> tuple[int, ...]:
    """The compute buffers of a model that has only the blocks `kept`, with the weights of `source` (None: no size)."""
    infos = _tensors(source) if source else {}

    def find_weight(name: str, home: int) -> tuple[int, int]:
        if name.startswith("blk."):
            _, number, rest = name.split(".", 2)
            name = f"blk.{kept[int(number)]}.{rest}"
        info = infos.get(name)
        if info is None:
            return 0, home
        return info.n_bytes, home if takes(traits[home], info) else settings.host

    homes = tuple(settings.layer_home[block] for block in kept)
    build: Callable[..., Graph] = mtp_graph if is_mtp else trunk_graph
    graph = build(replace(geometry, block_count=len(kept)), replace(settings, layer_home=homes), find_weight)
    accelerators = traits[:-1]
    in_pipeline = len(accelerators) > 1 and settings.is_fully_offloaded and all(t.is_asynchronous for t in accelerators)
    return tuple(compute_bytes(graph, traits, PIPELINE_COPIES if in_pipeline else 1))
