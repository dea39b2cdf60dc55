"""Near ties: greedy choices that rounding may change, because a row's logits depend on the rows computed beside it.

Backends choose kernels by the number of rows, and these sum in different orders. None of them is wrong, but if two
logits are closer than rounding moves them, a greedy text may change. `benchmarks/exactness.py` measures by how much.
"""

from __future__ import annotations

from typing import Final

_SOME: Final = 4  # rows from which another kernel multiplies matrices of Q4_K
_MANY: Final = 64  # rows from which flash attention computes in tiles on a CPU
# File type -> how far a logit moved at most if a text was read 2, 4 to 32, or 64 and more rows at a time, instead of
# one. The largest of: with and without flash attention; KV caches of f32, f16 and q8_0; with and without repacking; 512
# tokens on one thread and 640 on two. A CPU with AVX2; AVX-512 and AMX moved them no further. See BENCHMARKS.md.
_MOVED: Final[dict[str, tuple[float, float, float]]] = {
    "F32": (0.07, 0.07, 0.07),
    "F16": (0.13, 0.13, 0.13),
    "BF16": (0.12, 0.12, 0.13),
    "Q8_0": (0.45, 0.45, 0.45),
    "Q6_K": (0.85, 0.85, 0.88),
    "Q4_0": (0.48, 0.48, 0.54),
    "IQ4_NL": (0.55, 0.55, 0.67),
    "Q4_K_M": (0.60, 0.66, 0.94),
}
_OTHERS: Final = "Q4_K_M"


def near_tie(file_type: str, n_rows: int) -> float:
    """The gap between two logits below which passes of up to `n_rows` rows may change their order.

    It is twice the largest measured change, because both logits may move.

    Args:
        file_type: "F16", "Q4_K_M", ...; a type that was not measured counts as the one that moves most.
        n_rows: with 1 the gap is 0, because nothing is computed beside the row.
    """
    if n_rows <= 1:
        return 0.0
    few, some, many = _MOVED.get(file_type, _MOVED[_OTHERS])
    return 2 * (many if n_rows >= _MANY else some if n_rows >= _SOME else few)
