"""The worst-case compute graphs that llama.cpp reserves memory for, as lists of tensors with sizes and no data.

llama.cpp sizes its compute buffers by building the graph of one full ubatch on a full cache and running its
allocator on it (`sched_reserve`). This module builds the same graphs for the two layouts of this project and for the
MTP context; `allocator` replays the allocator. Only what decides memory is kept: sizes, sources, views,
graph inputs and outputs, and the devices of weights and caches.

The sources, at commit 0c1e57098, whose order is kept line by line:
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/step35.cpp (trunk and MTP graphs),
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/qwen2.cpp,
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-graph.cpp (build_attn, build_attn_mha, build_ffn),
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-kv-cache.cpp (cpy_k, cpy_v, build_input_k_rot),
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml.c (ggml_visit_parents_graph: the order of nodes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from mimo_gguf.core.geometry import STEP35, Geometry
from mimo_gguf.core.kv_cache import padded
from mimo_gguf.memory.arena import Address

Shape = tuple[int, ...]
F32: Final = 4  # bytes
I32: Final = 4
I64: Final = 8
_VECTOR_KERNEL_TOKENS: Final = 2  # up to this number attention reads a quantized cache without converting it


class Op(IntEnum):
    """The operations these graphs use. VIEW stands for view, reshape, permute and transpose alike."""

    NONE = 0
    VIEW = 1
    GET_ROWS = 2
    SET_ROWS = 3
    MUL_MAT = 4
    ADD = 5
    MUL = 6
    RMS_NORM = 7
    ROPE = 8
    SOFT_MAX = 9
    FLASH_ATTN = 10
    GLU = 11
    CONT = 12
    CONCAT = 13


INPLACE: Final = frozenset({Op.ADD, Op.MUL, Op.RMS_NORM, Op.ROPE, Op.SOFT_MAX})


class Tensor:
    """One tensor of a graph.

    Attributes:
        shape: ne[0], ne[1], ...: ggml's order, innermost first.
        view_of: the tensor whose memory this one shows; a view of a view has the same root.
        home: index of the device that holds it already (a weight or a cache), or None.
        is_weight: it lies in a weight buffer, so the operations that use it run on that device.
        is_scattered: it multiplies with a quantized matrix whose rows do not follow one another.
        n_rows: the batch size by a backend's offload rule.
        scratch_bytes: room behind a flash-attention result for f16 copies of a cache of another type, which CUDA-like
            backends ask for.
        metal_bytes: the room that Metal asks for there.
        arena, address, is_own, n_children, n_views: used by the allocator: its place, whether it owns that memory, and
            how many tensors have yet to read or show it.
    """

    __slots__ = (
        "address", "arena", "home", "is_input", "is_output", "is_own", "is_scattered", "is_weight",
        "metal_bytes", "n_bytes", "n_children", "n_rows", "n_views", "op", "scratch_bytes", "shape", "sources",
        "view_of",
    )  # fmt: skip

    def __init__(
        self, op: Op, shape: Shape, n_bytes: int, sources: list[Tensor], view_of: Tensor | None = None
    ) -> None:
        self.op = op
        self.shape = shape
        self.n_bytes = n_bytes
        self.sources = sources
        self.view_of = view_of
        self.home: int | None = None
        self.is_input = False
        self.is_output = False
        self.is_weight = False
        self.is_scattered = False
        self.n_rows = 0
        self.scratch_bytes = self.metal_bytes = 0
        self.address = Address(0, 0)
        self.arena = self.n_children = self.n_views = 0
        self.is_own = False


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """The settings that decide a context's worst-case graph.

    Attributes:
        n_tokens: min(n_ctx, n_ubatch).
        n_outputs: min(n_tokens, n_outputs_max).
        n_kv: cells of the cache, or of each conversation's part of it.
        n_streams: parts of the cache; 1 if all conversations share it.
        k_is_quantized, v_is_quantized: llama.cpp then rotates K and V through Hadamard matrices.
        k_is_f16, v_is_f16: if not, CUDA-like backends convert the cache before attention.
        k_bytes, v_bytes: a block's cache; they matter only to a device that does not take a tensor of any size.
        layer_home: device index of each block's weights and cache; MTP blocks at the end.
        output_home: device index of the output layer.
        host: device index of the CPU.
        is_fully_offloaded: no layer is left on the host.
    """

    n_tokens: int
    n_outputs: int
    n_kv: int
    n_streams: int
    k_is_quantized: bool
    v_is_quantized: bool
    k_is_f16: bool
    v_is_f16: bool
    k_bytes: int
    v_bytes: int
    flash_attn: bool
    layer_home: Sequence[int]
    output_home: int
    host: int
    is_fully_offloaded: bool


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in execution order, and leafs in the order of their first use."""

    nodes: list[Tensor]
    leafs: list[Tensor]


# The bytes of a weight and the device it lies on, by its name and the device of its layer.
FindWeight = Callable[[str, int], tuple[int, int]]


class GraphBuilder:
    """Builds one graph; the method names are those of llama.cpp's `llm_graph_context` and ggml."""

    def __init__(self, geometry: Geometry, settings: GraphSettings, find_weight: FindWeight) -> None:
        self.geometry = geometry
        self.settings = settings
        self.find_weight = find_weight
        self.graph = Graph([], [])
        self._seen: set[Tensor] = set()

    # --- ggml

    def new(self, op: Op, shape: Shape, *sources: Tensor, element_bytes: int = F32) -> Tensor:
        n_bytes = element_bytes
        for extent in shape:
            n_bytes *= extent
        tensor = Tensor(op, shape, n_bytes, list(sources))
        tensor.n_rows = shape[1] if len(shape) > 1 else 1
        return tensor

    def view(self, tensor: Tensor, shape: Shape) -> Tensor:
        root = tensor.view_of or tensor
        return Tensor(Op.VIEW, shape, tensor.n_bytes, [tensor], root)

    def input(self, shape: Shape, element_bytes: int) -> Tensor:
        tensor = self.new(Op.NONE, shape, element_bytes=element_bytes)
        tensor.is_input = True
        return tensor

    def weight(self, name: str, home: int) -> Tensor:
        n_bytes, home = self.find_weight(name, home)
        tensor = Tensor(Op.NONE, (), n_bytes, [])
        tensor.home = home
        tensor.is_weight = True
        return tensor

    def expand(self, tensor: Tensor) -> None:
        """Adds a tensor after its sources, depth first, as ggml_build_forward_expand does."""
        if tensor in self._seen:
            return
        self._seen.add(tensor)
        for source in tensor.sources:
            self.expand(source)
        (self.graph.leafs if tensor.op is Op.NONE else self.graph.nodes).append(tensor)

    def mul_mat(self, weight: Tensor, x: Tensor, n_rows: int) -> Tensor:
        return self.new(Op.MUL_MAT, (n_rows, *x.shape[1:]), weight, x)

    # --- llm_graph_context

    def norm(self, x: Tensor, name: str, home: int) -> Tensor:
        return self.new(Op.MUL, x.shape, self.new(Op.RMS_NORM, x.shape, x), self.weight(name, home))

    def linear(self, x: Tensor, name: str, n_rows: int, home: int, *, bias: bool = False) -> Tensor:
        y = self.mul_mat(self.weight(f"{name}.weight", home), x, n_rows)
        return self.new(Op.ADD, y.shape, y, self.weight(f"{name}.bias", home)) if bias else y

    def hadamard(self, x: Tensor, rotation: Tensor) -> Tensor:
        n = rotation.shape[0]
        count = x.n_bytes // F32
        rotated = self.mul_mat(rotation, self.view(x, (n, count // n)), n)
        return self.view(rotated, x.shape)

    def attention_inputs(self) -> AttentionInputs:
        """The inputs that build_attn_inp_kv makes: indices, mask, rotations."""
        s, g = self.settings, self.geometry
        v_rows = s.n_tokens * (1 if s.flash_attn else g.head_count_kv * g.value_length)
        k_turn = 64
        while g.key_length % (2 * k_turn) == 0:
            k_turn *= 2
        return AttentionInputs(
            k_idxs=self.input((s.n_tokens,), I64),
            v_idxs=self.input((v_rows,), I64),
            mask=self.input((s.n_kv, s.n_tokens), 2 if s.flash_attn else F32),
            k_rotation=self.input((k_turn, k_turn), F32) if s.k_is_quantized and g.key_length % 64 == 0 else None,
            v_rotation=self.input((64, 64), F32) if s.v_is_quantized and g.value_length % 64 == 0 else None,
        )

    def attention(self, x: Tensor, positions: Tensor, inputs: AttentionInputs, block: int, *, k_first: bool) -> Tensor:
        """The heads' output, of shape (head_count * value_length, n_tokens), from the normed state `x` (build_attn).

        Args:
            k_first: whether K is expanded before V, as in step35's graph.
        """
        s, g = self.settings, self.geometry
        home = s.layer_home[block]
        name = f"blk.{block}.attn_"
        heads = {"q": g.head_count, "k": g.head_count_kv, "v": g.head_count_kv}
        widths = {"q": g.key_length, "k": g.key_length, "v": g.value_length}
        qkv: dict[str, Tensor] = {}
        for part in "qkv":
            flat = self.linear(x, name + part, heads[part] * widths[part], home, bias=True)
            qkv[part] = self.view(flat, (widths[part], heads[part], s.n_tokens))
        for part in "qk":
            qkv[part] = self.new(Op.ROPE, qkv[part].shape, qkv[part], positions)
        for part, rotation in (("q", inputs.k_rotation), ("k", inputs.k_rotation), ("v", inputs.v_rotation)):
            if rotation is not None:
                qkv[part] = self.hadamard(qkv[part], rotation)
        for part in "qkv" if k_first else "qvk":
            self.expand(qkv[part])
        k_cache, v_cache = self.cache(home, s.k_bytes), self.cache(home, s.v_bytes)
        for part, cache, indices in (("k", k_cache, inputs.k_idxs), ("v", v_cache, inputs.v_idxs)):
            row = self.view(qkv[part], (heads[part] * widths[part], s.n_tokens))
            if part == "v" and not s.flash_attn:
                row = self.view(row, (1, g.head_count_kv * g.value_length * s.n_tokens))
            self.expand(self.store(cache, row, indices))
        attended = self.heads(qkv["q"], k_cache, v_cache, inputs.mask)
        self.expand(attended)
        return self.hadamard(attended, inputs.v_rotation) if inputs.v_rotation is not None else attended

    def cache(self, home: int, n_bytes: int) -> Tensor:
        tensor = Tensor(Op.NONE, (), n_bytes, [])
        tensor.home = home
        return tensor

    def store(self, cache: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
        """A view of the cache that is written when it is computed, as in cpy_k and cpy_v."""
        return Tensor(Op.SET_ROWS, (), cache.n_bytes, [rows, indices, cache], cache)

    def heads(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, mask: Tensor) -> Tensor:
        """Attention over the cache, as in build_attn_mha."""
        s, g = self.settings, self.geometry
        q = self.view(self.view(q, q.shape), (g.key_length, s.n_tokens, g.head_count))
        k = self.view(self.view(k_cache, ()), ())
        v = self.view(self.view(v_cache, ()), ())
        width = g.value_length * g.head_count
        if s.flash_attn:
            out = self.new(Op.FLASH_ATTN, (g.value_length, g.head_count, s.n_tokens), q, k, v, mask)
            if s.n_tokens > _VECTOR_KERNEL_TOKENS:
                widths = g.key_length * (not s.k_is_f16), g.value_length * (not s.v_is_f16)
                out.scratch_bytes = 2 * s.n_kv * g.head_count_kv * sum(widths)
            out.metal_bytes = self.metal_scratch()
            return self.view(out, (width, s.n_tokens))
        kq = self.new(Op.MUL_MAT, (s.n_kv, s.n_tokens, g.head_count), k, q)
        kq.is_scattered = s.k_is_quantized and g.head_count_kv > 1
        kq = self.new(Op.SOFT_MAX, kq.shape, kq, mask)
        kqv = self.new(Op.MUL_MAT, (g.value_length, s.n_tokens, g.head_count), v, kq)
        merged = self.view(kqv, (g.value_length, g.head_count, s.n_tokens))
        return self.new(Op.CONT, (width, s.n_tokens), merged)

    def metal_scratch(self) -> int:
        """The bytes behind a flash-attention result on Metal: padding, mask blocks, partial results, an f16 cache.

        https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-metal/ggml-metal-ops.cpp
        (ggml_metal_op_flash_attn_ext_extra_pad, _blk, _tmp, _kv_f16)
        """
        s, g = self.settings, self.geometry
        n_rows = s.n_tokens // s.n_streams
        halves = 2 * g.key_length, 2 * g.value_length  # a head's K and V of one cell, in f16
        stored = s.k_bytes // (s.n_kv * s.n_streams), s.v_bytes // (s.n_kv * s.n_streams)
        strides = halves if s.k_is_quantized and n_rows >= 32 else stored
        padding = 64 * s.n_streams * (g.head_count_kv * sum(strides) + 2 * n_rows)
        is_vector = n_rows < 20 and g.key_length % 32 == 0
        rows, cells = (1, 32) if is_vector else (8, 64)
        blocks = padded(-(-s.n_kv // cells) * -(-n_rows // rows) * s.n_streams, 32)
        partial = F32 * min(n_rows, 32) * g.head_count * s.n_streams * 32 * (g.value_length + 2)
        return padding + blocks + partial + s.n_kv * s.n_streams * g.head_count_kv * sum(halves)

    def feed_forward(self, x: Tensor, block: int) -> Tensor:
        """The feed-forward layer, as in build_ffn with SiLU and a parallel gate."""
        home = self.settings.layer_home[block]
        width = self.geometry.feed_forward_length
        up = self.linear(x, f"blk.{block}.ffn_up", width, home)
        gate = self.linear(x, f"blk.{block}.ffn_gate", width, home)
        act = self.new(Op.GLU, gate.shape, gate, up)
        return self.linear(act, f"blk.{block}.ffn_down", self.geometry.embedding_length, home)

    def block(
        self,
        x: Tensor,
        positions: Tensor,
        inputs: AttentionInputs,
        block: int,
        *,
        k_first: bool,
        keep: Tensor | None = None,
    ) -> Tensor:
        """One decoder block.

        Args:
            keep: ids of the rows that are kept after attention, as in qwen2's last block; None keeps all.
        """
        home = self.settings.layer_home[block]
        normed = self.norm(x, f"blk.{block}.attn_norm.weight", home)
        attended = self.attention(normed, positions, inputs, block, k_first=k_first)
        y = self.linear(attended, f"blk.{block}.attn_output", self.geometry.embedding_length, home)
        if keep is not None:
            y, x = self.rows(y, keep), self.rows(x, keep)
        middle = self.new(Op.ADD, y.shape, y, x)
        normed = self.norm(middle, f"blk.{block}.ffn_norm.weight", home)
        return self.new(Op.ADD, middle.shape, self.feed_forward(normed, block), middle)

    def rows(self, x: Tensor, ids: Tensor) -> Tensor:
        tensor = self.new(Op.GET_ROWS, (self.geometry.embedding_length, ids.shape[0]), x, ids)
        tensor.n_rows = 0  # never offloaded by batch size
        return tensor

    def logits(self, x: Tensor, norm_name: str, norm_home: int) -> Tensor:
        """The logits: final norm and lm_head. In the trunk, both results are graph outputs."""
        s, g = self.settings, self.geometry
        normed = self.norm(x, norm_name, norm_home)
        return self.linear(normed, "output", g.vocab_size, s.output_home)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """Graph inputs that the attention of every block shares."""

    k_idxs: Tensor
    v_idxs: Tensor
    mask: Tensor
    k_rotation: Tensor | None
    v_rotation: Tensor | None


def trunk_graph(geometry: Geometry, settings: GraphSettings, find_weight: FindWeight) -> Graph:
    """The graph of the target context."""
    b = GraphBuilder(geometry, settings, find_weight)
    is_step35 = geometry.architecture == STEP35
    tokens = b.input((settings.n_tokens,), I32)
    embeddings = b.input((geometry.embedding_length, settings.n_tokens), F32)
    x = b.rows(b.weight("token_embd.weight", settings.host), tokens)
    b.expand(x)
    b.expand(embeddings)  # always allocated, whichever of the two a batch carries
    positions = b.input((settings.n_tokens,), I32)
    inputs = b.attention_inputs()
    out_ids = b.input((settings.n_outputs,), I32)
    for block in range(geometry.n_trunk):
        is_last = block == geometry.n_trunk - 1
        keep = out_ids if is_last and not is_step35 else None
        x = b.block(x, positions, inputs, block, k_first=is_step35, keep=keep)
    if is_step35:
        x.is_output = True  # h_nextn, the state that the MTP context reads
        x = b.rows(x, out_ids)
    logits = b.logits(x, "output_norm.weight", settings.output_home)
    logits.sources[1].is_output = True  # result_norm
    logits.is_output = True
    b.expand(logits)
    return b.graph


def mtp_graph(geometry: Geometry, settings: GraphSettings, find_weight: FindWeight) -> Graph:
    """The graph of the MTP context (first MTP block)."""
    b = GraphBuilder(geometry, settings, find_weight)
    block = geometry.n_trunk
    home = settings.layer_home[block]
    name = f"blk.{block}."
    width = geometry.embedding_length
    tokens = b.input((settings.n_tokens,), I32)
    hidden = b.input((width, settings.n_tokens), F32)
    embedded = b.rows(b.weight("token_embd.weight", settings.host), tokens)
    positions = b.input((settings.n_tokens,), I32)
    inputs = b.attention_inputs()
    h = b.norm(hidden, name + "nextn.hnorm.weight", home)
    e = b.norm(embedded, name + "nextn.enorm.weight", home)
    both = b.new(Op.CONCAT, (2 * width, settings.n_tokens), e, h)
    x = b.linear(both, name + "nextn.eh_proj", width, home)
    x = b.block(x, positions, inputs, block, k_first=True)
    x = b.rows(x, b.input((settings.n_outputs,), I32))
    x.is_output = True
    logits = b.logits(x, name + "nextn.shared_head_norm.weight", home)
    logits.is_output = True
    b.expand(logits)
    return b.graph
