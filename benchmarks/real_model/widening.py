"""Changes of basis that make MiMo's layout out of the original and leave its function as it was.

The original is a Llama: 576 wide, 9 heads of 64, 3 KV heads, its embedding tied to its head, its weights on the grids
of Q4_1 and Q8_0. The checkpoint is 768 wide with 12 heads and 4 KV heads, untied. In real arithmetic nothing else
changes:

- The residual stream goes through a fixed matrix R with R^T R = 4/3 I, in groups of three dimensions. The factor makes
  the mean square over 768 columns what it was over 576, so that the norms' epsilon stays as it is.
- The norms' gains move into the matrices behind them, and new ones come out again: in each group the root mean square.
- A fourth KV head with three query heads joins the others.

Two layouts do this. `widened` makes four dimensions of every three by a random reflection. Its fourth KV head is the
third once more, turned inside, with half of the output weights each. No weight is a zero that pads, and none lies on a
grid. But every input of a matrix has rank 576 of 768, which flatters encoders that shift errors between columns.
`padded` reflects three dimensions into three, and the remaining columns and heads are zeros: the encoder sees 576
independent columns, as it would in a model that was trained so.

Every sum has a fixed order and no library for matrices is asked, so that the bytes are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.real_model.geometry import HEAD_DIM, MIMO, ORIGINAL
from benchmarks.real_model.original import Array, Original

SEED = 7
GROUP = 3  # dimensions of the residual stream that are turned together
N_GROUPS = ORIGINAL.width // GROUP
LAYOUTS = {"widened": 4, "padded": 3}  # layout -> dimensions that a group of three becomes
MTP = "model.mtp_layers.0."
GROWTH = np.sqrt(MIMO.width / ORIGINAL.width)
ROWS = 64  # turned at a time: they fit into a core's cache
PER_KV = ORIGINAL.n_heads // ORIGINAL.n_kv_heads


@dataclass(frozen=True, slots=True)
class Basis:
    """The matrix R [768, 576], as its diagonal blocks.

    Attributes:
        blocks: [192, new dimensions, 3], each with orthonormal columns times the growth.
    """

    blocks: Array

    @property
    def size(self) -> int:
        return int(self.blocks.shape[1])

    def inputs(self, matrix: Array) -> Array:
        """`matrix @ R.T`: [rows, 576] to [rows, 768]."""
        new = np.zeros((len(matrix), MIMO.width))
        for first in range(0, len(matrix), ROWS):
            old = matrix[first : first + ROWS].reshape(-1, N_GROUPS, GROUP)
            for j in range(self.size):
                column = old[:, :, 0] * self.blocks[:, j, 0]
                for k in range(1, GROUP):
                    column += old[:, :, k] * self.blocks[:, j, k]
                new[first : first + ROWS, j : N_GROUPS * self.size : self.size] = column
        return new

    def outputs(self, matrix: Array) -> Array:
        """`R @ matrix`: [576, columns] to [768, columns]."""
        return np.ascontiguousarray(self.inputs(np.ascontiguousarray(matrix.T)).T)

    def gains(self, old: Array) -> Array:
        """New gains [768] of a norm with the gains `old` [576], as bfloat16 has them."""
        squares = old.reshape(N_GROUPS, GROUP) ** 2
        mean = (squares[:, 0] + squares[:, 1] + squares[:, 2]) / GROUP
        return as_bfloat16(pad(np.repeat(np.sqrt(mean), self.size)[None], 1.0)[0])

    def behind_norm(self, matrix: Array, old: Array) -> Array:
        """A matrix that reads a norm with the gains `old`, for the norm with the new gains."""
        return self.inputs(matrix * old) / GROWTH**2 / self.gains(old)


def pad(rows: Array, value: float) -> Array:
    """Rows [n, up to 768], filled up to 768 with `value`."""
    return np.pad(rows, ((0, 0), (0, MIMO.width - rows.shape[1])), constant_values=value)


def make_basis(layout: str) -> Basis:
    """The change of basis of a layout; the same numbers every time."""
    rng = np.random.default_rng([SEED, 0])
    size = LAYOUTS[layout]
    blocks = [mirror(reflector(rng, size), np.eye(size))[:, :GROUP] for _ in range(N_GROUPS)]
    return Basis(np.stack(blocks) * GROWTH)


def reflector(rng: np.random.Generator, size: int) -> Array:
    """A vector whose entries are of like size, so that the reflection along it mixes everything."""
    signs = 1.0 - 2.0 * rng.integers(0, 2, size)
    return rng.uniform(0.6, 1.4, size) * signs


def mirror(along: Array, rows: Array) -> Array:
    """`(I - 2 v v^T / v^T v) @ rows` for v = `along`, summed from the first row to the last."""
    dots, square = np.zeros(rows.shape[1]), 0.0
    for entry, row in zip(along, rows, strict=True):
        dots = dots + entry * row
        square += entry * entry
    return np.asarray(rows - np.outer(2.0 * along / square, dots))


@dataclass(frozen=True, slots=True)
class ExtraHead:
    """The fourth KV head of a block, with its three query heads.

    Attributes:
        is_copy: whether it repeats the third one; otherwise it is zeros.
        tangents: [32], of half the angles by which query and key are turned, pair by pair, as rope turns them.
        along: [64], the vector along which value and output are reflected.
    """

    is_copy: bool
    tangents: Array
    along: Array

    def query(self, rows: Array) -> Array:
        last = rows[-PER_KV * HEAD_DIM :].reshape(PER_KV, HEAD_DIM, -1)
        return self._join(rows, np.concatenate([self._turn(head) for head in last]))

    def key(self, rows: Array) -> Array:
        return self._join(rows, self._turn(rows[-HEAD_DIM:]))

    def value(self, rows: Array) -> Array:
        return self._join(rows, mirror(self.along, rows[-HEAD_DIM:]))

    def output(self, columns: Array) -> Array:
        """Columns [n, 576] of the output matrix to [n, 768]; a copy takes half of what the third head has."""
        rows = columns.T
        n_rest = len(rows) - PER_KV * HEAD_DIM
        half = rows[n_rest:] / 2 if self.is_copy else rows[n_rest:]
        copies = [mirror(self.along, head) for head in half.reshape(PER_KV, HEAD_DIM, -1)]
        return np.ascontiguousarray(self._join(np.concatenate([rows[:n_rest], half]), np.concatenate(copies)).T)

    def _turn(self, head: Array) -> Array:
        square = self.tangents**2
        cos, sin = ((1 - square) / (1 + square))[:, None], (2 * self.tangents / (1 + square))[:, None]
        a, b = head[: HEAD_DIM // 2], head[HEAD_DIM // 2 :]
        return np.concatenate([cos * a - sin * b, sin * a + cos * b])

    def _join(self, rows: Array, more: Array) -> Array:
        return np.concatenate([rows, more if self.is_copy else np.zeros_like(more)])


def extra_head(layout: str, number: int) -> ExtraHead:
    """The extra head of block `number`; the MTP layer's comes after the trunk's."""
    rng = np.random.default_rng([SEED, 1 + number])
    tangents = rng.uniform(0.4, 1.6, HEAD_DIM // 2)
    return ExtraHead(layout == "widened", tangents, reflector(rng, HEAD_DIM))


def widen(original: Original, layout: str, *, mtp: bool) -> Iterator[tuple[str, Array]]:
    """Every tensor of the checkpoint in its order, under MiMo's names, as float64."""
    basis = make_basis(layout)
    yield "model.embed_tokens.weight", basis.inputs(original.tensor("model.embed_tokens.weight"))
    for number in range(original.n_blocks):
        yield from _block(original, basis, f"model.layers.{number}.", extra_head(layout, number))
    norm = original.tensor("model.norm.weight")
    yield "model.norm.weight", basis.gains(norm)
    if mtp:
        yield from _block(original, basis, MTP, extra_head(layout, original.n_blocks))
        yield from _mtp_entry(original, basis)
        ratio = np.repeat(original.tensor(f"{MTP}final_ratio"), basis.size)
        yield f"{MTP}final_layernorm.weight", basis.gains(norm) * pad(ratio[None], 1.0)[0]
    yield "lm_head.weight", basis.behind_norm(original.tensor("model.embed_tokens.weight"), norm)


def _block(original: Original, basis: Basis, prefix: str, extra: ExtraHead) -> Iterator[tuple[str, Array]]:
    gain = original.tensor(f"{prefix}input_layernorm.weight")
    yield f"{prefix}input_layernorm.weight", basis.gains(gain)
    for name, join in (("q_proj", extra.query), ("k_proj", extra.key), ("v_proj", extra.value)):
        name = f"{prefix}self_attn.{name}"
        yield f"{name}.weight", basis.behind_norm(join(original.tensor(f"{name}.weight")), gain)
        yield f"{name}.bias", join(original.tensor(f"{name}.bias")[:, None])[:, 0]
    yield (
        f"{prefix}self_attn.o_proj.weight",
        basis.outputs(extra.output(original.tensor(f"{prefix}self_attn.o_proj.weight"))),
    )
    gain = original.tensor(f"{prefix}post_attention_layernorm.weight")
    yield f"{prefix}post_attention_layernorm.weight", basis.gains(gain)
    for name in ("gate_proj", "up_proj"):
        yield f"{prefix}mlp.{name}.weight", basis.behind_norm(original.tensor(f"{prefix}mlp.{name}.weight"), gain)
    yield f"{prefix}mlp.down_proj.weight", basis.outputs(original.tensor(f"{prefix}mlp.down_proj.weight"))


def _mtp_entry(original: Original, basis: Basis) -> Iterator[tuple[str, Array]]:
    """What the MTP layer has before its block: two norms, and the matrix that joins state and embedding."""
    halves = np.split(original.tensor(f"{MTP}input_proj.weight"), 2, axis=1)
    joined = []
    for name, half in zip(("hidden_layernorm", "token_layernorm"), halves, strict=True):
        gain = original.tensor(f"{MTP}{name}.weight")
        yield f"{MTP}{name}.weight", basis.gains(gain)
        joined.append(basis.outputs(basis.behind_norm(half, gain)))
    yield f"{MTP}input_proj.weight", np.concatenate(joined, axis=1)


def bfloat16_bits(values: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """The nearest bfloat16, ties to even, as its bits; `values` are finite."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def as_bfloat16(values: Array) -> Array:
    """The values rounded to bfloat16, as float64."""
    return (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
