"""The backward pass of one block in numpy, and the gradients of the loss at the outputs of its matrices.

The forward pass of the block is computed anew from its input, so that nothing but the states between blocks has to be
kept. Rows are the tokens of one window. The loss is a sum over the window's tokens, so the gradient at a token holds
what it does to its own prediction and to all later ones.

With y = W x for a matrix W, and g the gradient at y, the mean of g_i^2 over tokens says how sensitive the loss is to an
error in row i of W (K-FAC: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
curvature, arXiv 1503.05671).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.geometry import Geometry
from mimo_gguf.reference.forward import angles, rms_norm, rotate, silu
from mimo_gguf.reference.model import ReferenceModel, Rotation

Floats = NDArray[np.float32]

PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True, slots=True)
class BlockFloats:
    """A block's weights as arrays, because gradients need them transposed; names as in `reference.BlockWeights`."""

    number: int
    geometry: Geometry
    rotation: Rotation
    attn_norm: Floats
    ffn_norm: Floats
    q_bias: Floats | None
    k_bias: Floats | None
    v_bias: Floats | None
    attn_q: Floats
    attn_k: Floats
    attn_v: Floats
    attn_output: Floats
    ffn_gate: Floats
    ffn_up: Floats
    ffn_down: Floats

    def name(self, part: str) -> str:
        """The GGUF name of one of its matrices: `attn_q` -> `blk.7.attn_q.weight`."""
        return f"blk.{self.number}.{part}.weight"


def read_floats(model: ReferenceModel, number: int) -> BlockFloats:
    """The weights of a block by its GGUF number.

    Raises:
        CheckpointError, GgufError: their data ends early.
    """

    def bias(part: str) -> Floats | None:
        name = f"blk.{number}.attn_{part}.bias"
        return model.vector(name) if model.has(name) else None

    return BlockFloats(
        number,
        model.geometry,
        model.rotation(number),
        model.vector(f"blk.{number}.attn_norm.weight"),
        model.vector(f"blk.{number}.ffn_norm.weight"),
        bias("q"),
        bias("k"),
        bias("v"),
        *(model.weights(f"blk.{number}.{part}.weight") for part in PARTS),
    )


@dataclass(frozen=True, slots=True)
class BlockPass:
    """What a forward pass of one block computed, float32 [n, ...]: inputs of its matrices, and what is between.

    Attributes:
        x: the block's input.
        attn_in: what attn_q, attn_k and attn_v read.
        q, k: rotated, [n, heads, key_length] and [n, kv_heads, key_length]; v likewise.
        attn_out: what attn_output reads.
        middle: x after attention.
        ffn_in: what ffn_gate and ffn_up read.
        gate, up: their outputs.
        inner: what ffn_down reads.
    """

    x: Floats
    attn_in: Floats
    q: Floats
    k: Floats
    v: Floats
    attn_out: Floats
    middle: Floats
    ffn_in: Floats
    gate: Floats
    up: Floats
    inner: Floats

    def inputs(self) -> dict[str, Floats]:
        """The rows that each matrix of the block reads, by the matrix's part of its name."""
        read = {"attn_q": self.attn_in, "attn_k": self.attn_in, "attn_v": self.attn_in, "attn_output": self.attn_out}
        return read | {"ffn_gate": self.ffn_in, "ffn_up": self.ffn_in, "ffn_down": self.inner}


def forward_block(x: Floats, weights: BlockFloats) -> BlockPass:
    """Computes a block, keeping what its backward pass needs. `x` is [n, n_embd], one window from position 0 on."""
    g, epsilon = weights.geometry, weights.geometry.rms_epsilon
    n = len(x)
    attn_in = rms_norm(x, weights.attn_norm, epsilon)
    turn = angles(n, weights.rotation, 0)
    q = rotate(_with_bias(attn_in, weights.attn_q, weights.q_bias).reshape(n, g.head_count, -1), *turn)
    k = rotate(_with_bias(attn_in, weights.attn_k, weights.k_bias).reshape(n, g.head_count_kv, -1), *turn)
    v = _with_bias(attn_in, weights.attn_v, weights.v_bias).reshape(n, g.head_count_kv, -1)
    attn_out = np.empty((n, g.head_count, v.shape[2]), np.float32)
    for kv, heads in _groups(weights):
        scores = _probabilities(q[:, heads], k[:, kv])
        attn_out[:, heads] = np.matmul(scores, v[:, kv]).swapaxes(0, 1)
    joined: Floats = attn_out.reshape(n, -1)
    middle = x + joined @ weights.attn_output.T
    ffn_in = rms_norm(middle, weights.ffn_norm, epsilon)
    gate, up = ffn_in @ weights.ffn_gate.T, ffn_in @ weights.ffn_up.T
    return BlockPass(x, attn_in, q, k, v, joined, middle, ffn_in, gate, up, silu(gate) * up)


def backward_block(done: BlockPass, weights: BlockFloats, gradient: Floats) -> tuple[Floats, dict[str, Floats]]:
    """Takes the gradient at a block's output back to its input.

    Returns:
        The gradient at the block's input [n, n_embd], and the gradients [n, rows] at the output of each of its seven
        matrices, by the matrix's part of its name (before rotation, for queries and keys).
    """
    g = weights.geometry
    d_inner: Floats = gradient @ weights.ffn_down
    sigmoid = _sigmoid(done.gate)
    d_gate: Floats = d_inner * done.up * (sigmoid * (1 + done.gate * (1 - sigmoid)))
    d_up: Floats = d_inner * (done.gate * sigmoid)
    d_ffn_in: Floats = d_gate @ weights.ffn_gate
    d_ffn_in += d_up @ weights.ffn_up
    d_middle: Floats = gradient + norm_backward(done.middle, weights.ffn_norm, g.rms_epsilon, d_ffn_in)
    d_attn_out: Floats = d_middle @ weights.attn_output
    d_q, d_k, d_v = _attention_backward(done, weights, d_attn_out)
    d_attn_in: Floats = d_q @ weights.attn_q
    d_attn_in += d_k @ weights.attn_k
    d_attn_in += d_v @ weights.attn_v
    d_x = d_middle + norm_backward(done.x, weights.attn_norm, g.rms_epsilon, d_attn_in)
    return d_x, {
        "attn_q": d_q,
        "attn_k": d_k,
        "attn_v": d_v,
        "attn_output": d_middle,
        "ffn_gate": d_gate,
        "ffn_up": d_up,
        "ffn_down": gradient,
    }


def norm_backward(x: Floats, gains: Floats, epsilon: float, gradient: Floats) -> Floats:
    """Takes the gradient at the output of `rms_norm` back to its input, both [n, n_embd]."""
    scale = 1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(epsilon))
    at_unit = gradient * gains
    along = np.sum(at_unit * x, axis=1, keepdims=True) / np.float32(x.shape[1])
    out: Floats = scale * (at_unit - x * (scale * scale * along))
    return out


def _attention_backward(done: BlockPass, weights: BlockFloats, d_out: Floats) -> tuple[Floats, Floats, Floats]:
    """The gradients at the outputs of attn_q, attn_k and attn_v, from the one at what attn_output reads."""
    n = len(d_out)
    d_heads = d_out.reshape(n, weights.geometry.head_count, -1)
    d_q, d_k, d_v = np.empty_like(done.q), np.empty_like(done.k), np.empty_like(done.v)
    scale = np.float32(done.q.shape[2] ** -0.5)
    for kv, heads in _groups(weights):
        q, k, v = done.q[:, heads].swapaxes(0, 1), done.k[:, kv], done.v[:, kv]
        d_o = np.ascontiguousarray(d_heads[:, heads].swapaxes(0, 1))
        scores = _probabilities(done.q[:, heads], k)
        d_v[:, kv] = np.matmul(scores.swapaxes(1, 2), d_o).sum(axis=0)
        d_scores = np.matmul(d_o, v.T)
        d_scores -= np.sum(d_scores * scores, axis=2, keepdims=True)
        d_scores *= scores
        d_scores *= scale
        d_q[:, heads] = np.matmul(d_scores, k).swapaxes(0, 1)
        d_k[:, kv] = np.matmul(d_scores.swapaxes(1, 2), q).sum(axis=0)
    cos, sin = angles(n, weights.rotation, 0)
    back = (rotate(d_q, cos, -sin), rotate(d_k, cos, -sin), d_v)  # the inverse of a rotation is its transpose
    return back[0].reshape(n, -1), back[1].reshape(n, -1), back[2].reshape(n, -1)


def _groups(weights: BlockFloats) -> list[tuple[int, slice]]:
    """Each KV head, and the query heads that read it."""
    n_group = weights.geometry.n_gqa
    return [(kv, slice(kv * n_group, (kv + 1) * n_group)) for kv in range(weights.geometry.head_count_kv)]


def _probabilities(q: Floats, k: Floats) -> Floats:
    """The attention [group, n, n] of the query heads [n, group, length] that share keys [n, length]."""
    n, _, length = q.shape
    scores: Floats = np.matmul(q.swapaxes(0, 1) * np.float32(length**-0.5), k.T)
    scores[:, np.triu(np.ones((n, n), np.bool_), 1)] = -np.inf
    scores -= scores.max(axis=2, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=2, keepdims=True)
    return scores


def _sigmoid(x: Floats) -> Floats:
    out: Floats = (1 + np.tanh(x * np.float32(0.5))) * np.float32(0.5)
    return out


def _with_bias(x: Floats, matrix: Floats, bias: Floats | None) -> Floats:
    out: Floats = x @ matrix.T
    return out if bias is None else out + bias
