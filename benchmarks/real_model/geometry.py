"""Sizes of the original model, and of the checkpoint that is made of it."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_DIM = 64
FFN = 1536
EPSILON = 1e-5
ROPE_BASE = 100_000.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Width of the residual stream, and heads of attention."""

    width: int
    n_heads: int
    n_kv_heads: int

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of query, key and value."""
        return self.n_heads * HEAD_DIM, self.n_kv_heads * HEAD_DIM, self.n_kv_heads * HEAD_DIM


ORIGINAL = Shape(576, 9, 3)
MIMO = Shape(768, 12, 4)  # K-quants want multiples of 256
