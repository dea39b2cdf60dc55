"""A float32 torch reference of MiMo with its MTP layers, to hold llama.cpp's numbers against.

Written from the published model's configuration and the description of its MTP layer, not from llama.cpp. The
parameters carry the checkpoint's names, so that `state_dict()` and the safetensors files are the same mapping.
Token ids are [T] or [batch, T]; everything else carries the same leading dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Hidden = Literal["pre", "post"]
# Keys and values of the tokens before, one entry per block. A call that is given one reads and extends it.
Cache = dict[str, tuple[Tensor, Tensor]]


class Mimo(nn.Module):
    """The trunk (a Qwen2 decoder) and `num_nextn_predict_layers` MTP layers; embedding and lm_head are shared."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        size, rows = config["hidden_size"], config["vocab_size"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(rows, size)
        self.model.layers = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.model.norm = RmsNorm(size, config["rms_norm_eps"])
        n_mtp = config.get("num_nextn_predict_layers") or 0
        if n_mtp:
            self.model.mtp_layers = nn.ModuleList(MtpLayer(config) for _ in range(n_mtp))
        self.tied = bool(config.get("tie_word_embeddings", False))
        if not self.tied:
            self.lm_head = nn.Linear(size, rows, bias=False)

    def trunk(self, ids: Tensor, cache: Cache | None = None) -> tuple[Tensor, Tensor]:
        """(logits [..., T, vocab_size], state [..., T, hidden_size] BEFORE the final norm)."""
        start = cached_length(cache, "trunk.0")
        positions = torch.arange(start, start + ids.shape[-1])
        x = self.model.embed_tokens(ids)
        for n, block in enumerate(self.model.layers):
            x = block(x, positions, cache, f"trunk.{n}")
        return self.head(self.model.norm(x)), x

    def mtp(
        self,
        layer: int,
        hidden: Tensor,
        next_ids: Tensor,
        positions: Tensor | None = None,
        *,
        hidden_kind: Hidden = "pre",
        cache: Cache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One MTP layer over rows of (h[p], x[p+1]): logits for x[p+2], and the layer's state before its final norm.

        Args:
            layer: which MTP layer.
            hidden: [..., R, hidden_size], the trunk's state before the final norm at p (or, for a chained draft, the
                state that the MTP layer before returned).
            next_ids: [..., R], the tokens at p+1.
            positions: [R], rope positions. llama.cpp gives a row the position of its token, p+1; a row for position 0
                (zeros for the state that does not exist) is optional. Rope sees differences only, so any constant
                offset gives the same logits; the default counts from 1.
            hidden_kind: "post" applies the trunk's final norm to `hidden` first, as some engines do.
            cache: as in `trunk`.
        """
        key = f"mtp.{layer}"
        if positions is None:
            start = 1 + cached_length(cache, key)
            positions = torch.arange(start, start + next_ids.shape[-1])
        if hidden_kind == "post":
            hidden = self.model.norm(hidden)
        block = self.model.mtp_layers[layer]
        y = block(block.join(hidden, self.model.embed_tokens(next_ids)), positions, cache, key)
        return self.head(block.final_layernorm(y)), y

    def head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.model.embed_tokens.weight if self.tied else self.lm_head.weight)


class Block(nn.Module):
    """A decoder block: x + attention(norm(x)), then x + swiglu(norm(x))."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = RmsNorm(size, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(size, eps)
        self.mlp = Mlp(size, config["intermediate_size"])

    def forward(self, x: Tensor, positions: Tensor, cache: Cache | None, key: str) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), positions, cache, key)
        return x + self.mlp(self.post_attention_layernorm(x))


class MtpLayer(Block):
    """A block behind a projection of [state, embedding of the next token], with norms of its own."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        size, eps = config["hidden_size"], config["rms_norm_eps"]
        self.token_layernorm = RmsNorm(size, eps)
        self.hidden_layernorm = RmsNorm(size, eps)
        self.input_proj = nn.Linear(2 * size, size, bias=False)
        self.final_layernorm = RmsNorm(size, eps)

    def join(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """The block's input; the hidden half comes FIRST in MiMo."""
        halves = (self.hidden_layernorm(hidden), self.token_layernorm(embedding))
        return self.input_proj(torch.cat(halves, dim=-1))


class Attention(nn.Module):
    """Causal grouped-query attention with QKV biases and NEOX rope (dimension i turns with i + head_dim / 2)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size, heads, kv_heads = (config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
        self.head_dim = config.get("head_dim") or size // heads
        self.rope_theta = float(config["rope_theta"])
        self.group = heads // kv_heads
        self.q_proj = nn.Linear(size, heads * self.head_dim)
        self.k_proj = nn.Linear(size, kv_heads * self.head_dim)
        self.v_proj = nn.Linear(size, kv_heads * self.head_dim)
        self.o_proj = nn.Linear(heads * self.head_dim, size, bias=False)

    def forward(self, x: Tensor, positions: Tensor, cache: Cache | None, key: str) -> Tensor:
        q = rotate(self.split(self.q_proj(x)), positions, self.rope_theta)
        k = rotate(self.split(self.k_proj(x)), positions, self.rope_theta)
        v = self.split(self.v_proj(x))
        if cache is not None:
            if key in cache:
                k, v = (torch.cat(pair, dim=-2) for pair in zip(cache[key], (k, v), strict=True))
            cache[key] = (k, v)
        n, total = q.shape[-2], k.shape[-2]
        k, v = (t.repeat_interleave(self.group, dim=-3) for t in (k, v))
        mask = None if n == total else torch.ones(n, total, dtype=torch.bool).tril(total - n)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(-2, -3).flatten(-2))

    def split(self, x: Tensor) -> Tensor:
        """[..., T, heads * head_dim] -> [..., heads, T, head_dim]"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight"""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """NEOX rope of [..., T, head_dim] at `positions` [T]."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions.to(torch.float32)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def cached_length(cache: Cache | None, key: str) -> int:
    return cache[key][0].shape[-2] if cache and key in cache else 0
