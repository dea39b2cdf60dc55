"""A replay of ggml's scheduler and graph allocator: the bytes of compute buffer that each device needs for a graph.

It makes the same decisions in the same order as llama.cpp at commit 0c1e57098, so the sizes are equal to the byte:
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-backend.cpp (ggml_backend_sched_split_graph),
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-alloc.c (ggml_gallocr_alloc_graph_impl).

Vulkan's devices put the nodes into an order of their own first (`vulkan_order`), and compute no tensor beyond a size.
Operations that a backend lacks for other reasons are not replayed. Metal's order (`metal_order`) is from its source
alone. llama.cpp pins some norms to their layer's device when it runs, but not when it only measures. This replay agrees
with the measurement, which on each of several devices is larger by a copy of the hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mimo_gguf.memory.arena import UNBOUNDED, Arena
from mimo_gguf.memory.graph import INPLACE, Graph, Op, Tensor
from mimo_gguf.memory.metal_order import metal_order
from mimo_gguf.memory.vulkan_order import vulkan_order


@dataclass(frozen=True, slots=True)
class DeviceTraits:
    """How a device's buffers behave.

    Attributes:
        alignment: bytes; every tensor is padded to a multiple of it (32 on the CPU, 128 on CUDA).
        offload_min_batch: from this batch size on, the device also computes with weights in host memory, after copying
            them (CUDA, Vulkan, Metal and SYCL: 32); None if it never does (CPU, RPC).
        is_cuda_like: flash attention converts a cache that is not f16, and quantized rows are padded to 512 weights
            (CUDA, ROCm, MUSA, SYCL)
            https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-cuda/ggml-cuda.cu (get_alloc_size).
        is_asynchronous: it computes and signals events in the background. Several such devices that hold all layers
            work in a pipeline, with four copies of everything that passes between them.
        reorders_nodes: it computes in the order of `vulkan_order`.
        chunk_bytes: the most that it allocates at a time; a larger compute buffer has several chunks
            (Vulkan: 1 GiB https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-vulkan/ggml-vulkan.cpp).
        tensor_bytes: the largest tensor it computes with (Vulkan: `maxStorageBufferRange`, often 4 GiB). An operation
            that reads or writes a larger one is left to the host.
        takes_scattered: whether it multiplies with a quantized matrix whose rows do not follow one another, as those of
            one head's K in the cache (not Vulkan).
        host_alignment: alignment of the host's memory that it can copy from quickly, which then holds what the host
            holds (Vulkan: `minMemoryMapAlignment`); None if it has no such memory.
        host_chunk_bytes: the most that is allocated of such memory at a time.
        is_metal: it computes in the order of `metal_order`, copies weights from the host only for matrix products, and
            flash attention asks for more room
            (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-metal/ggml-metal.cpp).
        has_amx: it is a CPU that keeps matrices in AMX's layout (`weights.amx_bytes`).
    """

    alignment: int = 32
    offload_min_batch: int | None = None
    is_asynchronous: bool = False
    is_cuda_like: bool = False
    reorders_nodes: bool = False
    chunk_bytes: int = UNBOUNDED
    tensor_bytes: int = UNBOUNDED
    takes_scattered: bool = True
    host_alignment: int | None = None
    host_chunk_bytes: int = UNBOUNDED
    is_metal: bool = False
    has_amx: bool = False

    def order(self, nodes: list[Tensor]) -> list[Tensor]:
        """The nodes of one split in the order in which the device computes them."""
        if self.reorders_nodes:
            return vulkan_order(nodes)
        return metal_order(nodes) if self.is_metal else nodes

    def offloads(self, node: Tensor) -> bool:
        """Whether the device copies the weights of the operation from the host, and computes it (`offload_op`)."""
        if self.offload_min_batch is None or node.n_rows < self.offload_min_batch:
            return False
        return (node.op is Op.MUL_MAT or not self.is_metal) and self.computes(node)

    def computes(self, node: Tensor) -> bool:
        """Whether the device can do the operation (`supports_op`)."""
        if node.is_scattered and not self.takes_scattered:
            return False
        if self.tensor_bytes == UNBOUNDED:
            return True
        return max((node.n_bytes, *(source.n_bytes for source in node.sources))) <= self.tensor_bytes

    def size_of(self, tensor: Tensor) -> int:
        """The number of bytes that this device allocates for `tensor`."""
        if self.is_cuda_like and tensor.scratch_bytes:
            return -(-tensor.n_bytes // self.alignment) * self.alignment + tensor.scratch_bytes
        return tensor.n_bytes + (tensor.metal_bytes if self.is_metal else 0)


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
        _expand(order, assigned, devices, skips_host=skips_host)
    for node in real:
        if node not in assigned:
            assigned[node] = _nearest_device(node, assigned, devices)
    _assign_sources(graph, assigned)
    return assigned


def _expand(
    order: Sequence[Tensor], assigned: dict[Tensor, int], devices: Sequence[DeviceTraits], *, skips_host: bool
) -> None:
    """Gives nodes the device of the one before them, if it can compute them (pass 2)."""
    current: int | None = None
    for node in order:
        device = assigned.get(node)
        if device is not None:
            current = None if skips_host and device == len(devices) - 1 else device
        elif current is not None and devices[current].computes(node):
            assigned[node] = current


def _nearest_device(node: Tensor, assigned: dict[Tensor, int], devices: Sequence[DeviceTraits]) -> int:
    """The device that has most of the sources of a node, among those that can compute it (pass 3)."""
    able = [index for index, device in enumerate(devices) if device.computes(node)]
    places = [_place(source, assigned) for source in node.sources]
    return max(able, key=places.count)  # of equals the first


def _place(tensor: Tensor, assigned: dict[Tensor, int]) -> int | None:
    root = tensor.view_of or tensor
    return root.home if root.home is not None else assigned.get(tensor, assigned.get(root))


def _assign_sources(graph: Graph, assigned: dict[Tensor, int]) -> None:
    """Gives views the device of what they show, and other sources that of their node (pass 4)."""
    for node in graph.nodes:
        if node not in assigned and node.view_of is not None and node.view_of in assigned:
            assigned[node] = assigned[node.view_of]
        own = assigned.get(node)
        for source in node.sources:
            if source not in assigned:
                place = assigned.get(source.view_of) if source.view_of is not None else own
                if place is not None:
                    assigned[source] = place


def _fixed_device(tensor: Tensor, devices: Sequence[DeviceTraits], host: int) -> int | None:
    """The device that pass 1 gives a tensor: that of its memory or its weights, or the host for inputs; else None."""
    home = tensor.view_of.home if tensor.view_of is not None else tensor.home
    if home is not None:
        return home
    if tensor.is_input:
        return host
    if tensor.op in (Op.ROPE, Op.FLASH_ATTN):
        return None
    weight = next((source for source in tensor.sources if source.is_weight), None)
    if weight is None or weight.home is None:
        return None
    if weight.home == host:
        for index, device in enumerate(devices[:host]):
            if device.offloads(tensor):
                return index
    return weight.home if devices[weight.home].computes(tensor) else None


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
        ordered = devices[device].order(members)
        nodes += ordered
        owners += [assigned.get(member, device) for member in ordered]
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


def _allocate(
    nodes: list[Tensor],
    owners: list[int],
    leafs: list[Tensor],
    assigned: dict[Tensor, int],
    devices: Sequence[DeviceTraits],
) -> list[int]:
    arenas = [Arena(device.alignment, device.chunk_bytes) for device in devices]

    def allocate(tensor: Tensor, device: int) -> None:
        if tensor.is_own or tensor.home is not None or tensor.view_of is not None:
            return
        tensor.is_own = True
        if tensor.op in INPLACE:
            for parent in tensor.sources:
                reusable = parent.is_own and not parent.is_output and parent.shape == tensor.shape
                if reusable and parent.n_children == 1 and parent.n_views == 0:
                    tensor.arena, tensor.address = parent.arena, parent.address
                    parent.is_own = False
                    return
        tensor.arena = device
        tensor.address = arenas[device].allocate(devices[device].size_of(tensor))

    def release(tensor: Tensor) -> None:
        if not tensor.is_output:
            arenas[tensor.arena].release(tensor.address, devices[tensor.arena].size_of(tensor))
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
    return [arena.n_bytes for arena in arenas]
