"""The changes of basis on one random block and a random MTP layer: the function stays, in float64, to ten digits."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from benchmarks.real_model.geometry import EPSILON, FFN, HEAD_DIM, MIMO, ORIGINAL, ROPE_BASE, Shape
from benchmarks.real_model.original import Array, Original, halves_from_pairs
from benchmarks.real_model.widening import (
    GROWTH,
    LAYOUTS,
    MTP,
    N_GROUPS,
    as_bfloat16,
    bfloat16_bits,
    extra_head,
    make_basis,
    widen,
)

N_VOCAB = 40
TRUNK = "model.layers.0."
TOKENS = np.array([3, 39, 0, 17, 17, 8])

Tensors = dict[str, Array]


@functools.cache
def original() -> Original:
    rng = np.random.default_rng(5)
    width, (q, k, v) = ORIGINAL.width, ORIGINAL.qkv_rows
    tensors: Tensors = {"model.embed_tokens.weight": rng.standard_normal((N_VOCAB, width)) * 0.1}
    tensors["model.norm.weight"] = gains(rng)
    for prefix in (TRUNK, MTP):
        for name, rows in (("q", q), ("k", k), ("v", v)):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = rng.standard_normal((rows, width)) * 0.05
            tensors[f"{prefix}self_attn.{name}_proj.bias"] = rng.standard_normal(rows)
        tensors[f"{prefix}self_attn.o_proj.weight"] = rng.standard_normal((width, q)) * 0.05
        tensors[f"{prefix}mlp.gate_proj.weight"] = rng.standard_normal((FFN, width)) * 0.05
        tensors[f"{prefix}mlp.up_proj.weight"] = rng.standard_normal((FFN, width)) * 0.05
        tensors[f"{prefix}mlp.down_proj.weight"] = rng.standard_normal((width, FFN)) * 0.05
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = gains(rng)
    tensors[f"{MTP}input_proj.weight"] = rng.standard_normal((width, 2 * width)) * 0.05
    tensors[f"{MTP}hidden_layernorm.weight"], tensors[f"{MTP}token_layernorm.weight"] = gains(rng), gains(rng)
    tensors[f"{MTP}final_ratio"] = np.exp2(rng.integers(-1, 2, N_GROUPS)).astype(
        np.float64
    )  # products that bfloat16 holds exactly
    return Original({"llama.block_count": 1}, {}, tensors)


def gains(rng: np.random.Generator) -> Array:
    signed = rng.uniform(0.2, 2.0, ORIGINAL.width) * rng.choice([-1.0, 1.0], ORIGINAL.width)
    return np.asarray(signed)


def norm(states: Array, gain: Array) -> Array:
    return np.asarray(states / np.sqrt((states**2).mean(-1, keepdims=True) + EPSILON) * gain)


def rope(heads: Array) -> Array:
    """Hugging Face's way, on heads [heads, tokens, 64]."""
    half = HEAD_DIM // 2
    angles = np.arange(heads.shape[1])[:, None] * ROPE_BASE ** (-np.arange(half) / half)
    a, b = heads[..., :half], heads[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def run_block(tensors: Tensors, prefix: str, states: Array, shape: Shape) -> Array:
    """A block of MiMo's form, written from its definition."""

    def heads(name: str, n: int) -> Array:
        rows = (
            inner @ tensors[f"{prefix}self_attn.{name}_proj.weight"].T + tensors[f"{prefix}self_attn.{name}_proj.bias"]
        )
        return rows.reshape(len(states), n, HEAD_DIM).transpose(1, 0, 2)

    inner = norm(states, tensors[f"{prefix}input_layernorm.weight"])
    query, key, value = (
        rope(heads("q", shape.n_heads)),
        rope(heads("k", shape.n_kv_heads)),
        heads("v", shape.n_kv_heads),
    )
    key, value = (np.repeat(part, shape.n_heads // shape.n_kv_heads, axis=0) for part in (key, value))
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(HEAD_DIM)
    scores = np.where(np.tri(len(states), dtype=bool), scores, -np.inf)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (share / share.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(len(states), -1)
    states = states + mixed @ tensors[f"{prefix}self_attn.o_proj.weight"].T
    inner = norm(states, tensors[f"{prefix}post_attention_layernorm.weight"])
    gate, up = (inner @ tensors[f"{prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    return np.asarray(states + gate / (1 + np.exp(-gate)) * up @ tensors[f"{prefix}mlp.down_proj.weight"].T)


def run(tensors: Tensors, shape: Shape, states: Array | None = None) -> tuple[Array, Array]:
    """Logits of trunk and MTP layer for `TOKENS`; `states` are those after the trunk, if they are known."""
    embedded = tensors["model.embed_tokens.weight"][TOKENS]
    states = run_block(tensors, TRUNK, embedded, shape) if states is None else states
    before = np.concatenate([np.zeros_like(states[:1]), states[:-1]])
    halves = [
        norm(before, tensors[f"{MTP}hidden_layernorm.weight"]),
        norm(embedded, tensors[f"{MTP}token_layernorm.weight"]),
    ]
    drafted = run_block(tensors, MTP, np.concatenate(halves, -1) @ tensors[f"{MTP}input_proj.weight"].T, shape)
    head = tensors["lm_head.weight"]
    trunk_logits = norm(states, tensors["model.norm.weight"]) @ head.T
    return trunk_logits, norm(drafted, tensors[f"{MTP}final_layernorm.weight"]) @ head.T


@functools.cache
def wanted() -> tuple[Array, Array]:
    tensors = dict(original().added)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    ratio = np.repeat(tensors[f"{MTP}final_ratio"], 3)
    tensors[f"{MTP}final_layernorm.weight"] = tensors["model.norm.weight"] * ratio
    return run(tensors, ORIGINAL)


@functools.cache
def widened(layout: str) -> Tensors:
    return dict(widen(original(), layout, mtp=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_function_stays(layout: str) -> None:
    for got, want in zip(run(widened(layout), MIMO), wanted(), strict=True):
        assert np.abs(want).max() > 0.5
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def test_every_part_matters() -> None:
    """The test above would fail if a tensor were lost: each one changed changes some logit."""
    tensors = widened("padded")
    states = run_block(tensors, TRUNK, tensors["model.embed_tokens.weight"][TOKENS], MIMO)
    for name in tensors:
        changed = tensors | {name: np.ascontiguousarray(tensors[name][::-1])}
        known = states if name.startswith(MTP) else None
        moved = max(np.abs(a - b).max() for a, b in zip(run(changed, MIMO, known), wanted(), strict=True))
        assert moved > 1e-6, name


@pytest.mark.parametrize(("layout", "rank"), [("widened", 768), ("padded", 576)])
def test_only_padding_is_zero(layout: str, rank: int) -> None:
    basis = make_basis(layout)
    matrix = basis.inputs(np.eye(ORIGINAL.width))
    np.testing.assert_allclose(matrix @ matrix.T, GROWTH**2 * np.eye(ORIGINAL.width), atol=1e-14)
    used = np.abs(widened(layout)["lm_head.weight"]).max(0) > 0
    assert used.sum() == rank and used[:rank].all()
    for name, tensor in widened(layout).items():
        if layout == "widened":
            assert (tensor != 0).all(), name


def test_padded_inputs_have_full_rank() -> None:
    """What encoders are judged on: the padded checkpoint's columns that are not zeros are independent."""
    states = np.random.default_rng(1).standard_normal((1000, ORIGINAL.width))
    ranks = {layout: np.linalg.matrix_rank(make_basis(layout).inputs(states)[:, :576]) for layout in LAYOUTS}
    assert ranks == {"padded": 576, "widened": 432}


def test_same_bytes_every_time() -> None:
    layout = "widened"
    again = dict(widen(original(), layout, mtp=True))
    assert list(again) == list(widened(layout))
    for name, tensor in again.items():
        assert bfloat16_bits(tensor).tobytes() == bfloat16_bits(widened(layout)[name]).tobytes()
    assert not np.array_equal(extra_head(layout, 0).along, extra_head(layout, 1).along)


def test_bfloat16_rounds_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(2).standard_normal(1000)
    values[:4] = [1 + 2**-8, 1 + 3 * 2**-8, -0.0, 2.0**-130]
    np.testing.assert_array_equal(as_bfloat16(values), torch.from_numpy(values).float().bfloat16().double().numpy())


def test_rows_of_query_come_back_in_hugging_faces_order() -> None:
    rows = np.arange(2 * HEAD_DIM, dtype=float)[:, None]
    pairs = rows.reshape(2, 2, HEAD_DIM // 2, 1).swapaxes(1, 2).reshape(rows.shape)  # as llama.cpp's converter does
    np.testing.assert_array_equal(halves_from_pairs(pairs, 2), rows)
