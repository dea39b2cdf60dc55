"""The model's blocks in torch, 576 wide, in float32, for training.

What the trunk computes here is what the checkpoint computes, up to the rounding of its weights to bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.real_model.geometry import EPSILON, HEAD_DIM, ORIGINAL, ROPE_BASE
from benchmarks.real_model.original import Original

LONGEST = 1024  # tokens of a text
WIDTH = ORIGINAL.width


@dataclass(slots=True)
class Block:
    """One block's weights, float32.

    Attributes:
        qkv: [960, 576], query, key and value one above the other.
        bias: [960].
        output: [576, 576].
        gate_up: [3072, 576], gate above up.
        down: [576, 1536].
        attention_gain, ffn_gain: [576].
    """

    qkv: torch.Tensor
    bias: torch.Tensor
    output: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    attention_gain: torch.Tensor
    ffn_gain: torch.Tensor


def rms(states: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    """The norm of states [..., 576]."""
    return F.rms_norm(states, (WIDTH,), gain, EPSILON)


def _rope_tables() -> tuple[torch.Tensor, torch.Tensor]:
    half = HEAD_DIM // 2
    angles = torch.arange(LONGEST)[:, None] * ROPE_BASE ** (-torch.arange(half, dtype=torch.float32) / half)
    return angles.cos(), angles.sin()


COS, SIN = _rope_tables()


def turn(heads: torch.Tensor) -> torch.Tensor:
    """Rope on heads [batch, heads, tokens, 64]; the first token is at position 0."""
    n = heads.shape[-2]
    a, b = heads.chunk(2, -1)
    return torch.cat((a * COS[:n] - b * SIN[:n], b * COS[:n] + a * SIN[:n]), -1)


def run_block(block: Block, states: torch.Tensor) -> torch.Tensor:
    """States [batch, tokens, 576] after the block, from those before it."""
    n_batch, n_tokens, _ = states.shape
    n_heads, n_kv = ORIGINAL.n_heads, ORIGINAL.n_kv_heads
    rows = F.linear(rms(states, block.attention_gain), block.qkv, block.bias)
    heads = rows.view(n_batch, n_tokens, n_heads + 2 * n_kv, HEAD_DIM).transpose(1, 2)
    query, key, value = heads.split((n_heads, n_kv, n_kv), 1)
    query, key = turn(query), turn(key)
    key, value = (part.repeat_interleave(n_heads // n_kv, 1) for part in (key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    states = states + F.linear(mixed.transpose(1, 2).reshape(n_batch, n_tokens, -1), block.output)
    gate, up = F.linear(rms(states, block.ffn_gain), block.gate_up).chunk(2, -1)
    return states + F.linear(F.silu(gate) * up, block.down)


def read_block(original: Original, prefix: str) -> Block:
    """A block of the original."""

    def tensor(*names: str) -> torch.Tensor:
        return torch.cat([torch.from_numpy(original.tensor(prefix + name)) for name in names]).float()

    qkv = [f"self_attn.{name}_proj" for name in "qkv"]
    return Block(
        qkv=tensor(*(f"{name}.weight" for name in qkv)),
        bias=tensor(*(f"{name}.bias" for name in qkv)),
        output=tensor("self_attn.o_proj.weight"),
        gate_up=tensor("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        down=tensor("mlp.down_proj.weight"),
        attention_gain=tensor("input_layernorm.weight"),
        ffn_gain=tensor("post_attention_layernorm.weight"),
    )


class Trunk:
    """The 30 blocks with embedding and head."""

    def __init__(self, original: Original) -> None:
        """Reads all weights: 540 MB."""
        self.blocks = [read_block(original, f"model.layers.{n}.") for n in range(original.n_blocks)]
        self.embedding = torch.from_numpy(original.tensor("model.embed_tokens.weight")).float()
        self.gain = torch.from_numpy(original.tensor("model.norm.weight")).float()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """States [batch, tokens, 576] of tokens [batch, tokens]."""
        return self.embedding[ids]

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """States before the final norm."""
        return run_blocks(self.blocks, self.embed(ids))

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] of states before the final norm, float32."""
        return F.linear(rms(states, self.gain), self.embedding)


def run_blocks(blocks: Sequence[Block], states: torch.Tensor) -> torch.Tensor:
    """States after blocks, one after the other."""
    for block in blocks:
        states = run_block(block, states)
    return states
