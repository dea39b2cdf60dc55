"""A replay of ggml's scheduler and graph allocator: the bytes of compute buffer that each device needs for a graph.

It makes the same decisions in the same order as llama.cpp at commit 0c1e57098, so the sizes are equal to the byte:
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-backend.cpp (ggml_backend_sched_split_graph),
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-alloc.c (ggml_gallocr_alloc_graph_impl).

Vulkan's devices put the nodes into an order of their own first (`vulkan_order`). Three things are not replayed, because
no device that this project can test shows them. They are chunked buffers (if a device's largest allocation is smaller
than the compute buffer), unsupported operations, and graphs that Metal rewrites. llama.cpp pins some norms to their
layer's device when it runs, but not when it only measures. This replay agrees with the measurement, which on each of
several devices is larger by a copy of the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mimo_gguf.memory.graph import INPLACE, Graph, Op, Tensor
from mimo_gguf.memory.vulkan_order import vulkan_order

_UNBOUNDED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class DeviceTraits:
    """How a device's buffers behave.

    Attributes:
        alignment: bytes; every tensor is padded to a multiple of it (32 on the CPU, 128 on CUDA).
        offload_min_batch: from this batch size on, the device also computes with weights in host memory, after copying
            them (CUDA, Vulkan, Metal and SYCL: 32); None if it never does (CPU, RPC).
        is_cuda_like: flash attention converts a cache that is not f16, and quantized rows are padded to 512 weights
            (CUDA, ROCm, MUSA, SYCL; assumed of Metal)
            https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-cuda/ggml-cuda.cu (get_alloc_size).
        is_asynchronous: it computes and signals events in the background. Several such devices that hold all layers
            work in a pipeline, with four copies of everything that passes between them.
        reorders_nodes: it computes in the order of `vulkan_order`.
    """

    alignment: int = 32
    offload_min_batch: int | None = None
    is_asynchronous: bool = False
    is_cuda_like: bool = False
    reorders_nodes: bool = False

    def size_of(self, tensor: Tensor) -> int:
        """The number of bytes that this device allocates for `tensor`."""
        if self.is_cuda_like and tensor.scratch_bytes:
            return -(-tensor.n_bytes // self.alignment) * self.alignment + tensor.scratch_bytes
        return tensor.n_bytes


CPU_TRAITS: Final = DeviceTraits()
PIPELINE_COPIES: Final = 4  # GGML_SCHED_MAX_COPIES


def compute_bytes(graph: Graph, devices: Sequence[DeviceTraits], n_copies: int = 1) -> list[int]:
    """The bytes of each device's compute buffer for `graph`; the last device is the CPU.

    The graph is changed: sources on another device are replaced by copies, as the scheduler does.

    Args:
        n_copies: of every graph input and of everything that passes between devices (PIPELINE_COPIES in a pipeline).
    """
    assigned = _assign(graph, devices)
    nodes, owners, crossings = _split(graph, assigned, devices)
    copies = _pipeline_copies(graph, crossings, assigned, n_copies) if n_copies > 1 else []
    return _allocate(nodes, owners, [*copies, *graph.leafs], assigned, devices)


def _assign(graph: Graph, devices: Sequence[DeviceTraits]) -> dict[Tensor, int]:
    """The device that computes each node, by passes 1 to 4 of the scheduler."""
    host = len(devices) - 1
    assigned: dict[Tensor, int] = {}
    for tensor in (*graph.leafs, *graph.nodes):
        device = _fixed_device(tensor, devices, host)
        if device is not None:
            assigned[tensor] = device
    real = [node for node in graph.nodes if node.op is not Op.VIEW]
    for order, skips_host in ((real, True), (real[::-1], True), (real, False), (real[::-1], False)):
        current: int | None = None
        for node in order:
            device = assigned.get(node)
            if device is not None:
                current = None if skips_host and device == host else device
            elif current is not None:
                assigned[node] = current
    for node in graph.nodes:
        if node not in assigned and node.view_of is not None and node.view_of in assigned:
            assigned[node] = assigned[node.view_of]
        own = assigned.get(node)
        for source in node.sources:
            if source not in assigned:
                place = assigned.get(source.view_of) if source.view_of is not None else own
                if place is not None:
                    assigned[source] = place
    return assigned


def _fixed_device(tensor: Tensor, devices: Sequence[DeviceTraits], host: int) -> int | None:
    """The device that pass 1 gives a tensor: that of its memory or its weights, or the host for inputs; else None."""
    home = tensor.view_of.home if tensor.view_of is not None else tensor.home
    if home is not None:
        return home
    if tensor.is_input:
        return host
    if tensor.op in (Op.ROPE, Op.FLASH_ATTN):
        return None
    for source in tensor.sources:
        if source.is_weight:
            if source.home == host:
                for index, device in enumerate(devices[:host]):
                    if device.offload_min_batch is not None and tensor.n_rows >= device.offload_min_batch:
                        return index
            return source.home
    return None


def _split(
    graph: Graph, assigned: dict[Tensor, int], devices: Sequence[DeviceTraits]
) -> tuple[list[Tensor], list[int], list[Tensor]]:
    """The nodes with copies between devices before each split, the device of each node, and the copies, by pass 5."""
    splits: list[tuple[int, list[Tensor], list[Tensor]]] = []  # device, inputs, nodes
    copies: dict[tuple[Tensor, int], Tensor] = {}
    pending: list[Tensor] = []  # leading views belong to the first split
    for node in graph.nodes:
        if node.op is Op.VIEW:
            (splits[-1][2] if splits else pending).append(node)
            continue
        device = assigned[node]
        foreign = [s for s in node.sources if _is_foreign(s, device, assigned)]
        needs_new = bool(splits) and bool(splits[-1][1]) and any(s.is_weight for s in foreign)
        if not splits or splits[-1][0] != device or needs_new:
            splits.append((device, [], []))
            splits[-1][2].extend(pending)
            pending = []
        _, inputs, members = splits[-1]
        for source in foreign:
            if (source, device) not in copies:
                copy = Tensor(Op.NONE, source.shape, source.n_bytes, [])
                copies[source, device] = copy
                assigned[copy] = device
                inputs.append(source)
        for position, source in enumerate(node.sources):
            if _is_foreign(source, device, assigned):
                node.sources[position] = copies[source, device]
        members.append(node)
    nodes: list[Tensor] = []
    owners: list[int] = []
    for device, inputs, members in splits:
        for source in inputs:
            hold = Tensor(Op.NONE, (), 0, [source], source.view_of or source)
            nodes += [hold, copies[source, device]]
            owners += [assigned[source], device]
        ordered = vulkan_order(members) if devices[device].reorders_nodes else members
        nodes += ordered
        owners += [assigned[member] for member in ordered]
    return nodes, owners, list(copies.values())


def _pipeline_copies(
    graph: Graph, crossings: Sequence[Tensor], assigned: dict[Tensor, int], n_copies: int
) -> list[Tensor]:
    """The copies of the graph's inputs and of what crosses devices, by pass 6; all of them stay allocated."""
    kept: list[Tensor] = []
    for original in (*(leaf for leaf in graph.leafs if leaf.is_input), *crossings):
        original.is_output = True
        kept.append(original)
        for _ in range(n_copies - 1):
            copy = Tensor(Op.NONE, original.shape, original.n_bytes, [])
            copy.is_output = True
            assigned[copy] = assigned[original]
            kept.append(copy)
    return kept


def _is_foreign(source: Tensor, device: int, assigned: dict[Tensor, int]) -> bool:
    home = source.view_of.home if source.view_of is not None else source.home
    if assigned.get(source) == device:
        return False
    return (assigned.get(source, -1) if home is None else home) != device


class _Arena:
    """One device's buffer, by ggml's rules: the best fit among freed blocks, else the end; freed neighbours merge."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.free: list[list[int]] = [[0, _UNBOUNDED]]  # offset, size; sorted by offset
        self.top = 0

    def padded(self, n_bytes: int) -> int:
        return -(-n_bytes // self.alignment) * self.alignment

    def allocate(self, n_bytes: int) -> int:
        size = self.padded(n_bytes)
        best = len(self.free) - 1
        best_size = _UNBOUNDED * 2
        for i, (_, available) in enumerate(self.free[:-1]):
            if size <= available <= best_size:
                best, best_size = i, available
        block = self.free[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del self.free[best]
        self.top = max(self.top, offset + size)
        return offset

    def release(self, offset: int, n_bytes: int) -> None:
        size = self.padded(n_bytes)
        free = self.free
        at = 0
        while at < len(free) and free[at][0] < offset:
            at += 1
        joins_next = at < len(free) and offset + size == free[at][0]
        joins_previous = at > 0 and free[at - 1][0] + free[at - 1][1] == offset
        if joins_previous and joins_next:
            free[at - 1][1] += size + free[at][1]
            del free[at]
        elif joins_previous:
            free[at - 1][1] += size
        elif joins_next:
            free[at][0] = offset
            free[at][1] += size
        else:
            free.insert(at, [offset, size])


def _allocate(
    nodes: list[Tensor],
    owners: list[int],
    leafs: list[Tensor],
    assigned: dict[Tensor, int],
    devices: Sequence[DeviceTraits],
) -> list[int]:
    arenas = [_Arena(device.alignment) for device in devices]

    def allocate(tensor: Tensor, device: int) -> None:
        if tensor.is_own or tensor.home is not None or tensor.view_of is not None:
            return
        tensor.is_own = True
        if tensor.op in INPLACE:
            for parent in tensor.sources:
                reusable = parent.is_own and not parent.is_output and parent.shape == tensor.shape
                if reusable and parent.n_children == 1 and parent.n_views == 0:
                    tensor.arena, tensor.offset = parent.arena, parent.offset
                    parent.is_own = False
                    return
        tensor.arena = device
        tensor.offset = arenas[device].allocate(devices[device].size_of(tensor))

    def release(tensor: Tensor) -> None:
        if not tensor.is_output:
            arenas[tensor.arena].release(tensor.offset, devices[tensor.arena].size_of(tensor))
            tensor.is_own = False

    for leaf in leafs:
        allocate(leaf, assigned[leaf])
    for node, device in zip(nodes, owners, strict=True):
        if node.view_of is not None and node.op is not Op.NONE:
            node.view_of.n_views += 1
        for source in node.sources:
            source.n_children += 1
            if source.is_input:
                allocate(source, device)
    for node, device in zip(nodes, owners, strict=True):
        for source in node.sources:
            allocate(source, device)
        allocate(node, device)
        for source in node.sources:
            source.n_children -= 1
            if source.n_children or source.n_views:
                continue
            root = source.view_of
            if root is not None:
                root.n_views -= 1
                if not root.n_views and not root.n_children and root.is_own:
                    release(root)
            elif source.is_own:
                release(source)
    return [arena.top for arena in arenas]
