"""MiMo's forward pass in float32: pure functions from rows to rows.

    x = embed(tokens)
    x = x + attention(norm(x)),  x = x + swiglu(norm(x))       for each block
    logits = head . final_norm(x)

An MTP block reads the trunk's state h at position p and the token after it:

    y = block(eh_proj . [enorm(embed(x[p + 1])), hnorm(h[p])]),  logits for x[p + 2] = head . shared_head_norm(y)

Rows are tokens of one window, in order. Sources: llama.cpp's graphs of both layouts,
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/qwen2.cpp and
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/step35.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.geometry import Geometry
from mimo_gguf.reference.decode import Floats
from mimo_gguf.reference.model import EMBEDDING, FINAL_NORM, ReferenceModel, Rotation
from mimo_gguf.reference.products import Matrix

Tokens = NDArray[np.int32]
Hidden = Literal["pre", "post"]
# Called with the GGUF name of the first matrix that reads these rows, and the rows, float32 [n_tokens, n_columns].
# The rows are valid during the call.
Tap = Callable[[str, Floats], None]

_FFN_ROWS: Final = 1024  # tokens whose inner activations are in memory at a time
_QUERY_ROWS: Final = 128  # queries of each head whose scores are in memory at a time
_CACHED_FLOATS: Final = 1 << 15  # that stay in a core's cache: touching new memory takes longer than computing


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """The weights of one block, by their GGUF names without `blk.N.`; biases that are missing are None."""

    number: int
    geometry: Geometry
    rotation: Rotation
    attn_norm: Floats
    attn_q: Matrix
    attn_k: Matrix
    attn_v: Matrix
    q_bias: Floats | None
    k_bias: Floats | None
    v_bias: Floats | None
    attn_output: Matrix
    ffn_norm: Floats
    ffn_gate: Matrix
    ffn_up: Matrix
    ffn_down: Matrix

    def name(self, part: str) -> str:
        """The GGUF name of one of its matrices: `attn_q` -> `blk.7.attn_q.weight`."""
        return f"blk.{self.number}.{part}.weight"


@dataclass(frozen=True, slots=True)
class MtpWeights:
    """The weights of an MTP block: a block, and what joins its two inputs."""

    block: BlockWeights
    enorm: Floats
    hnorm: Floats
    eh_proj: Matrix
    final_norm: Floats


def read_block(model: ReferenceModel, number: int) -> BlockWeights:
    """The weights of a block by its GGUF number.

    Raises:
        CheckpointError, GgufError: their data ends early.
    """

    def matrix(part: str) -> Matrix:
        return model.products.prepare(model.weights(f"blk.{number}.{part}.weight"))

    def bias(part: str) -> Floats | None:
        name = f"blk.{number}.{part}.bias"
        return model.vector(name) if model.has(name) else None

    return BlockWeights(
        number=number,
        geometry=model.geometry,
        rotation=model.rotation(number),
        attn_norm=model.vector(f"blk.{number}.attn_norm.weight"),
        attn_q=matrix("attn_q"),
        attn_k=matrix("attn_k"),
        attn_v=matrix("attn_v"),
        q_bias=bias("attn_q"),
        k_bias=bias("attn_k"),
        v_bias=bias("attn_v"),
        attn_output=matrix("attn_output"),
        ffn_norm=model.vector(f"blk.{number}.ffn_norm.weight"),
        ffn_gate=matrix("ffn_gate"),
        ffn_up=matrix("ffn_up"),
        ffn_down=matrix("ffn_down"),
    )


def read_mtp_block(model: ReferenceModel, number: int) -> MtpWeights:
    """The weights of an MTP block by its GGUF number.

    Raises:
        CheckpointError, GgufError: their data ends early.
    """
    start = f"blk.{number}.nextn."
    return MtpWeights(
        block=read_block(model, number),
        enorm=model.vector(f"{start}enorm.weight"),
        hnorm=model.vector(f"{start}hnorm.weight"),
        eh_proj=model.products.prepare(model.weights(f"{start}eh_proj.weight")),
        final_norm=model.vector(f"{start}shared_head_norm.weight"),
    )


# ---- the parts


def embed(model: ReferenceModel, tokens: Tokens) -> Floats:
    """The embedding rows of tokens, float32 [n, n_embd]. The matrix is read in parts, once for all tokens.

    Raises:
        CheckpointError, GgufError: its data ends early.
    """
    out = np.empty((len(tokens), model.geometry.embedding_length), np.float32)
    order = np.argsort(tokens, kind="stable")
    ordered = tokens[order]
    for first, rows in model.chunks(EMBEDDING):
        start, end = np.searchsorted(ordered, (first, first + len(rows)))
        out[order[start:end]] = rows[ordered[start:end] - first]
    return out


def rms_norm(x: Floats, gains: Floats, epsilon: float) -> Floats:
    """x / sqrt(mean(x^2) + epsilon) * gains, over the last axis."""
    mean_square = np.einsum("ij,ij->i", x, x) / np.float32(x.shape[1])
    scale = 1 / np.sqrt(mean_square + np.float32(epsilon))
    out: Floats = x * scale[:, None]
    out *= gains
    return out


def final_norm(model: ReferenceModel, x: Floats) -> Floats:
    """The rows that the head reads, from the trunk's states [n, n_embd].

    Raises:
        CheckpointError, GgufError: the gains' data ends early.
    """
    return rms_norm(x, model.vector(FINAL_NORM), model.geometry.rms_epsilon)


def head_logits(model: ReferenceModel, final: Floats, *, mtp_block: int | None = None) -> Floats:
    """The logits [n, n_vocab] of rows after their final norm; the matrix is read in parts.

    Args:
        final: [n, n_embd], as `final_norm` or `mtp_block` gives them.
        mtp_block: GGUF number of the MTP block that gave the rows, which may have a head of its own.

    Raises:
        CheckpointError, GgufError: the matrix's data ends early.
    """
    logits = np.empty((len(final), model.geometry.vocab_size), np.float32)
    for first, rows in model.chunks(model.head_name(mtp_block)):
        logits[:, first : first + len(rows)] = model.products.prepare(rows).product(final)
    return logits


def block(x: Floats, weights: BlockWeights, *, first_position: int = 0, tap: Tap | None = None) -> Floats:
    """The states [n, n_embd] after a block, from those before it.

    Args:
        first_position: the position of the first row, for the rotation.
        tap: receives the inputs of the block's matrices.
    """
    epsilon = weights.geometry.rms_epsilon
    x = x + _attention(rms_norm(x, weights.attn_norm, epsilon), weights, first_position, tap)
    for start in range(0, len(x), _FFN_ROWS):
        rows = x[start : start + _FFN_ROWS]
        rows += _swiglu(rms_norm(rows, weights.ffn_norm, epsilon), weights, tap)
    return x


def mtp_block(hidden: Floats, next_embedded: Floats, weights: MtpWeights, *, tap: Tap | None = None) -> Floats:
    """The rows [n, n_embd] of an MTP block after its own final norm; row p predicts the token at p + 2.

    Args:
        hidden: the trunk's states at p = 0 to n - 1.
        next_embedded: the embeddings of the tokens at p + 1.
        tap: receives the inputs of the block's matrices.
    """
    epsilon = weights.block.geometry.rms_epsilon
    halves = (rms_norm(next_embedded, weights.enorm, epsilon), rms_norm(hidden, weights.hnorm, epsilon))
    joined = np.concatenate(halves, axis=1)
    if tap is not None:
        tap(weights.block.name("nextn.eh_proj"), joined)
    # llama.cpp gives a row the position of its token
    y = block(weights.eh_proj.product(joined), weights.block, first_position=1, tap=tap)
    return rms_norm(y, weights.final_norm, epsilon)


def _attention(x: Floats, weights: BlockWeights, first_position: int, tap: Tap | None) -> Floats:
    g = weights.geometry
    if tap is not None:
        tap(weights.name("attn_q"), x)
    cos_sin = angles(len(x), weights.rotation, first_position)
    q = rotate(_biased(x, weights.attn_q, weights.q_bias).reshape(len(x), g.head_count, g.key_length), *cos_sin)
    k = rotate(_biased(x, weights.attn_k, weights.k_bias).reshape(len(x), g.head_count_kv, g.key_length), *cos_sin)
    v = _biased(x, weights.attn_v, weights.v_bias).reshape(len(x), g.head_count_kv, g.value_length)
    y = causal_attention(q, k, v)
    if tap is not None:
        tap(weights.name("attn_output"), y)
    return weights.attn_output.product(y)


def _swiglu(x: Floats, weights: BlockWeights, tap: Tap | None) -> Floats:
    if tap is not None:
        tap(weights.name("ffn_gate"), x)
    inner = weights.ffn_gate.product(x)
    silu(inner, out=inner)
    inner *= weights.ffn_up.product(x)
    if tap is not None:
        tap(weights.name("ffn_down"), inner)
    return weights.ffn_down.product(inner)


def _biased(x: Floats, matrix: Matrix, bias: Floats | None) -> Floats:
    out = matrix.product(x)
    if bias is not None:
        out += bias
    return out


def silu(x: Floats, out: Floats | None = None) -> Floats:
    """x / (1 + exp(-x)) of rows [n, columns], into `out` if it is given, which may be `x` itself."""
    out = np.empty_like(x) if out is None else out
    n_rows = max(1, _CACHED_FLOATS // x.shape[1])
    scratch = np.empty((n_rows, x.shape[1]), np.float32)
    with np.errstate(over="ignore"):  # x / inf is the right zero
        for first in range(0, len(x), n_rows):
            rows = x[first : first + n_rows]
            divisor = scratch[: len(rows)]
            np.negative(rows, out=divisor)
            np.exp(divisor, out=divisor)
            divisor += 1
            np.divide(rows, divisor, out=out[first : first + n_rows])
    return out


def angles(n: int, rotation: Rotation, first_position: int) -> tuple[Floats, Floats]:
    """Cosine and sine [n, n_dims / 2] of the angles by which each position turns each pair of dimensions."""
    half = rotation.n_dims // 2
    frequencies = rotation.freq_base ** (-np.arange(half) / half)
    turned = np.arange(first_position, first_position + n)[:, None] * frequencies
    return np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotates the leading dimensions of each head of x [n, n_heads, length]; dimension i turns with i + half (NEOX)."""
    half = cos.shape[1]
    cos, sin = cos[:, None], sin[:, None]
    a, b = x[..., :half], x[..., half : 2 * half]
    out = np.empty_like(x)
    np.multiply(a, cos, out=out[..., :half])
    np.multiply(b, cos, out=out[..., half : 2 * half])
    out[..., 2 * half :] = x[..., 2 * half :]
    turned = b * sin
    out[..., :half] -= turned
    np.multiply(a, sin, out=turned)
    out[..., half : 2 * half] += turned
    return out


def causal_attention(q: Floats, k: Floats, v: Floats) -> Floats:
    """The heads' outputs side by side [n, n_heads * value_length]; each token sees itself and those before it.

    Args:
        q: [n, n_heads, key_length]; consecutive heads share a KV head.
        k, v: [n, n_kv_heads, key_length] and [n, n_kv_heads, value_length].
    """
    n, n_heads, length = q.shape
    n_kv, n_group = k.shape[1], n_heads // k.shape[1]
    out = np.empty((n, n_heads, v.shape[2]), np.float32)
    scaled = q * np.float32(length**-0.5)
    for kv in range(n_kv):
        heads = slice(kv * n_group, (kv + 1) * n_group)
        keys, values = np.ascontiguousarray(k[:, kv]), np.ascontiguousarray(v[:, kv])
        for first in range(0, n, _QUERY_ROWS):
            last = min(first + _QUERY_ROWS, n)
            out[first:last, heads] = _attend(scaled[first:last, heads], keys[:last], values[:last])
    return out.reshape(n, n_heads * v.shape[2])


@cache
def _future(m: int) -> Floats:
    """What is added to the scores [m, group, m] of m tokens among themselves: -inf for those that come later."""
    return np.triu(np.full((m, m), -np.inf, np.float32), 1)[:, None]


def _attend(q: Floats, keys: Floats, values: Floats) -> Floats:
    """The outputs [m, n_group, value_length] of the last m tokens' queries, which share their keys."""
    m, n_group, length = q.shape
    scores: Floats = (q.reshape(-1, length) @ keys.T).reshape(m, n_group, -1)
    scores[:, :, -m:] += _future(m)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    flat = scores.reshape(m * n_group, -1)
    out: Floats = flat @ values
    out /= (flat @ np.ones(len(keys), np.float32))[:, None]
    return out.reshape(m, n_group, -1)
