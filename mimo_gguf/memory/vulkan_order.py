"""The order in which the Vulkan backend computes a graph, which decides what memory can be shared.

Vulkan's backend moves nodes that do not depend on each other next to each other, before memory is given out. This is
its function, kept step by step, for the operations of `graph`; patterns of other models are left out:
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-vulkan/ggml-vulkan.cpp (ggml_vk_graph_optimize).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimo_gguf.memory.graph import Op, Tensor

_WINDOW: Final = 20  # NUM_TO_CHECK
_REACH: Final = 15  # how far behind a node its partners of a fused operation are looked for
# A node may follow the one before it into a group, although it depends on it, if the two are computed as one.
_FUSED_PAIRS: Final = frozenset({(Op.MUL_MAT, Op.ADD), (Op.ADD, Op.ADD)})


def vulkan_order(nodes: Sequence[Tensor]) -> list[Tensor]:
    """The nodes of one split in the order in which a Vulkan device computes them."""
    return _Reordering(nodes).run()


def _root(tensor: Tensor) -> Tensor:
    return tensor.view_of or tensor


def _is_empty(tensor: Tensor) -> bool:
    return tensor.op is Op.VIEW or tensor.op is Op.NONE


def _depends(later: Tensor, earlier: Tensor) -> bool:
    """Whether `later` must stay behind `earlier` (is_src_of)."""
    if earlier in later.sources or _root(later) is _root(earlier):
        return True
    if _is_empty(later) or _is_empty(earlier):
        return False
    reads = any(_root(source) is _root(earlier) for source in later.sources)
    return reads or any(_root(source) is _root(later) for source in earlier.sources)


class _Reordering:
    """One run of ggml_vk_graph_optimize.

    Attributes:
        used: whether a node has its place, or belongs to the group that is being made.
        first: index of the first node without a place.
        uses: how many nodes read each node.
        blockers: for each node, the nodes at most a window before it that it depends on.
    """

    def __init__(self, nodes: Sequence[Tensor]) -> None:
        self.nodes = nodes
        self.used = [False] * len(nodes)
        self.first = 0
        self.order: list[int] = []
        self.placed: set[Tensor] = set()
        self.uses: dict[Tensor, int] = {}
        for node in nodes:
            for source in node.sources:
                self.uses[source] = self.uses.get(source, 0) + 1
        self.blockers = [
            [c for c in range(max(0, j - _WINDOW + 1), j) if _depends(node, nodes[c])] for j, node in enumerate(nodes)
        ]

    def run(self) -> list[Tensor]:
        while self.first < len(self.nodes):
            if self._is_stored_rope(self.first):
                self._place(range(self.first, self.first + 3))
                continue
            group = [self.first]
            self._add_operations(group)
            if self.nodes[group[-1]].op is not Op.ADD:
                self._add_views(group)
            self._place(group)
        return [self.nodes[index] for index in self.order]

    def _place(self, group: Sequence[int]) -> None:
        for index in group:
            self.order.append(index)
            self.placed.add(self.nodes[index])
            self.used[index] = True
        while self.first < len(self.nodes) and self.used[self.first]:
            self.first += 1

    def _is_stored_rope(self, start: int) -> bool:
        """Whether the pattern ROPE, VIEW, SET_ROWS begins here (rope_view_set_rows_pattern)."""
        ops = [node.op for node in self.nodes[start : start + 3]]
        return ops == [Op.ROPE, Op.VIEW, Op.SET_ROWS] and not any(self.used[start : start + 3])

    def _add_operations(self, group: list[int]) -> None:
        for j in range(self.first + 1, min(self.first + _WINDOW, len(self.nodes))):
            if self.used[j] or _is_empty(self.nodes[j]) or self._is_stored_rope(j):
                continue
            if all(self.used[c] or c < self.first or self._is_fused(c, j, group) for c in self.blockers[j]):
                group.append(j)
                self._pull_partners(j, group)

    def _is_fused(self, c: int, j: int, group: Sequence[int]) -> bool:
        if c != group[-1]:
            return False
        pair = self.nodes[c].op, self.nodes[j].op
        if pair == (Op.RMS_NORM, Op.MUL):
            return all(self.used[v] or _is_empty(self.nodes[v]) for v in range(c + 1, j))
        return j == c + 1 and pair in _FUSED_PAIRS

    def _pull_partners(self, j: int, group: list[int]) -> None:
        """Adds the nodes that are computed in one go with node j, from further behind."""
        pair = (self.nodes[j - 1].op, self.nodes[j].op)
        last = j
        if pair == (Op.RMS_NORM, Op.MUL):
            last = self._pull_rope(j, group)
        if self.nodes[last].op in (Op.ROPE, Op.RMS_NORM):
            self._pull_store(last, group)
        if pair == (Op.MUL_MAT, Op.ADD):
            self._pull_second_add(j, group)

    def _pull_rope(self, j: int, group: list[int]) -> int:
        for k in self._behind(j):
            node = self.nodes[k]
            if node.op is Op.ROPE and node.sources[0] is self.nodes[j] and node.sources[1].op is Op.NONE:
                self._pull(k, group)
                return k
        return j

    def _pull_store(self, rope: int, group: list[int]) -> None:
        view = -1
        for k in self._behind(rope):
            if self.used[k]:
                continue
            node = self.nodes[k]
            if view < 0 and node.op is Op.VIEW and node.sources[0] is self.nodes[rope]:
                view = k
            elif view >= 0 and node.op is Op.SET_ROWS and node.sources[0] is self.nodes[view]:
                if self._can_pull(rope, view, k):
                    self._pull(view, group)
                    self._pull(k, group)
                return

    def _can_pull(self, rope: int, view: int, store: int) -> bool:
        """Whether nothing else reads the three, and nothing between them is needed (ggml_can_fuse_subgraph_ext)."""
        if any(self.uses.get(self.nodes[index], 0) != 1 or self.nodes[index].is_output for index in (rope, view)):
            return False
        between = (c for c in range(rope + 1, store) if not self.used[c] and c != view)
        return not any(_depends(self.nodes[store], self.nodes[c]) for c in between if not _is_empty(self.nodes[c]))

    def _pull_second_add(self, j: int, group: list[int]) -> None:
        for k in self._behind(j):
            node = self.nodes[k]
            if node.op is Op.ADD and node.sources[0] is self.nodes[j]:
                other = node.sources[1]
                if other.op is Op.NONE or other in self.placed:
                    self._pull(k, group)
                    return

    def _behind(self, index: int) -> range:
        return range(index + 1, min(index + _REACH, len(self.nodes)))

    def _pull(self, index: int, group: list[int]) -> None:
        group.append(index)
        self.used[index] = True

    def _add_views(self, group: list[int]) -> None:
        for j in range(self.first + 1, min(self.first + _WINDOW, len(self.nodes))):
            if self.used[j] or not _is_empty(self.nodes[j]):
                continue
            if all(self.used[c] or c < self.first or c in group for c in self.blockers[j]):
                group.append(j)
