"""The order in which the Metal backend computes a graph, and what it keeps for longer than the graph says.

Metal's backend computes a norm and the product behind it as one, and keeps what both read until the product is done.
Then it moves nodes forward that can run beside those before them. Both are kept step by step, for the operations of
`graph`. They follow the source alone: no device of this kind was there to compare with.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-metal/ggml-metal-common.cpp (ggml_graph_optimize),
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-metal/ggml-metal-fusion.cpp (add_alloc_deps).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

from mimo_gguf.memory.graph import Op, Tensor

_REACH: Final = 64  # N_FORWARD
_NORM: Final = (Op.RMS_NORM, Op.MUL)
_STAYS: Final = frozenset({Op.FLASH_ATTN, Op.SOFT_MAX, Op.CONCAT})  # nothing is moved across these


def metal_order(nodes: Sequence[Tensor]) -> list[Tensor]:
    """The nodes of one split in the order in which Metal computes them, and a hold behind each product of a norm."""
    holds = _holds(nodes)
    ordered: list[Tensor] = []
    for group in _moved_forward(_packed(nodes)):
        for node in group.nodes:
            ordered.append(node)
            if node in holds:
                ordered.append(holds[node])
    return ordered


def _root(tensor: Tensor) -> Tensor:
    return tensor.view_of or tensor


class _Group:
    """Nodes that are computed as one: what they read from outside, and what they write."""

    __slots__ = ("nodes", "reads", "writes")

    def __init__(self, nodes: list[Tensor]) -> None:
        self.nodes = nodes
        self.reads = {_root(source) for node in nodes for source in node.sources if source not in nodes}
        self.writes = {_root(node) for node in nodes}

    @property
    def op(self) -> Op:
        return self.nodes[0].op

    @property
    def is_empty(self) -> bool:
        return self.op in (Op.VIEW, Op.NONE)


class _Running:
    """Groups that may run at the same time, by the memory they read and write."""

    def __init__(self) -> None:
        self._reads: set[Tensor] = set()
        self._writes: set[Tensor] = set()

    def add(self, group: _Group) -> None:
        self._reads |= group.reads
        self._writes |= group.writes

    def allows(self, group: _Group) -> bool:
        return self._writes.isdisjoint(group.reads | group.writes) and self._reads.isdisjoint(group.writes)


def _holds(nodes: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """By the product behind a norm, a node that keeps what the two read until then (add_alloc_deps)."""
    holds: dict[Tensor, Tensor] = {}
    for norm, product in itertools.pairwise(nodes):
        if (norm.op, product.op) == _NORM:
            kept = [*norm.sources, *(source for source in product.sources if source is not norm)]
            holds[product] = Tensor(Op.NONE, (), 0, kept, _root(kept[0]))
    return holds


def _packed(nodes: Sequence[Tensor]) -> list[_Group]:
    """Norms with their products, one after the other in one group, and every other node alone (fusion_max)."""
    uses: dict[Tensor, int] = {}
    for node in nodes:
        for source in node.sources:
            uses[source] = uses.get(source, 0) + 1
    groups: list[_Group] = []
    at = 0
    while at < len(nodes):
        end = at
        while end + 1 < len(nodes) and _is_fused(nodes[end], nodes[end + 1], uses):
            end += 2
        end = max(end, at + 1)
        groups.append(_Group(list(nodes[at:end])))
        at = end
    return groups


def _is_fused(norm: Tensor, product: Tensor, uses: dict[Tensor, int]) -> bool:
    is_pair = (norm.op, product.op) == _NORM and product.sources[0] is norm
    return is_pair and uses[norm] == 1 and not norm.is_output


def _moved_forward(groups: Sequence[_Group]) -> list[_Group]:
    """ggml_metal_graph_optimize_reorder."""
    order: list[_Group] = []
    used = [False] * len(groups)
    running = _Running()
    for first, group in enumerate(groups):
        if used[first]:
            continue
        if not group.is_empty and not running.allows(group):
            waiting = _Running()
            waiting.add(group)
            for later in range(first + 1, min(first + _REACH, len(groups))):
                other = groups[later]
                if used[later]:
                    continue
                if other.op in _STAYS:
                    break
                if (other.is_empty or running.allows(other)) and waiting.allows(other):
                    running.add(other)
                    order.append(other)
                    used[later] = True
                else:
                    waiting.add(other)
            running = _Running()
        running.add(group)
        order.append(group)
    return order
