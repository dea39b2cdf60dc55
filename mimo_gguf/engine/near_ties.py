"""Near ties: choices that rounding might turn, because a row's logits depend on the rows computed beside it.

Backends choose kernels by the number of rows, and these sum in other orders. Nothing of that is wrong, but a greedy
text may go on otherwise where two logits lie closer than they move. `benchmarks/exactness.py` measures by how much.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from mimo_gguf.llama.api import Floats

_TILE: Final = 64  # rows from which flash attention computes tiles on a CPU
# File type -> how far a logit moved at most: with 2 rows, 4 and more, 64 and more. The larger of two CPUs, one with
# AVX2 and one with AVX-512 (where Q4_K matrices are laid out anew and computed otherwise from 4 rows on).
_MOVED: Final[dict[str, tuple[float, float, float]]] = {
    "F32": (0.03, 0.03, 0.05),
    "F16": (0.04, 0.04, 0.05),
    "BF16": (0.10, 0.10, 0.13),
    "Q8_0": (0.10, 0.10, 0.38),
    "Q4_K_M": (0.13, 0.86, 0.86),
}
_OTHERS: Final = "Q4_K_M"


def near_tie(file_type: str, n_rows: int) -> float:
    """The gap of two logits below which passes of up to `n_rows` rows might order them otherwise: both may move.

    Args:
        file_type: "F16", "Q4_K_M", ...; what was not measured counts as the one that moves most.
        n_rows: 1 is a pass alone, which nothing moves.
    """
    if n_rows <= 1:
        return 0.0
    few, some, many = _MOVED.get(file_type, _MOVED[_OTHERS])
    return 2 * (many if n_rows >= _TILE else some if n_rows >= 4 else few)


def is_near_tie(logits: Floats, gap: float) -> bool:
    """Whether the second largest of `logits` is within `gap` of the largest: counted, not hidden."""
    best = logits.argmax()
    largest = logits[best]
    logits[best] = -np.inf  # for a moment: a second search costs less than comparing all
    is_near = bool(logits[logits.argmax()] > largest - gap)
    logits[best] = largest
    return is_near
