"""The identity probe: a few thousand awkward weights that libggml and a kernel of ours must quantise alike.

Well-behaved weights hide mistakes: a miscompiled kernel once passed on N(0, 0.02) and failed only on data like these.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType

N_COLUMNS: Final = 768  # three super-blocks: rows end in the middle of a two-block tile
N_ROWS: Final = 14


def probe_rows(source_type: GgmlType) -> NDArray[Any]:
    """Finite weights, N_ROWS x N_COLUMNS, in the storage of `source_type` (bf16 as uint16)."""
    return stored_as(_awkward_weights(), source_type)


def probe_importances() -> list[NDArray[np.float32]]:
    """Importance rows of N_COLUMNS: far apart in size, none at all in half of the sub-blocks, and nowhere any."""
    rng = np.random.default_rng(2027)
    skewed = np.exp(3 * rng.standard_normal(N_COLUMNS)).astype(np.float32)
    every_other = np.arange(N_COLUMNS) // 16 % 2 == 0
    return [skewed, np.where(every_other, skewed, np.float32(0)), np.zeros(N_COLUMNS, np.float32)]


def stored_as(weights: NDArray[np.float32], source_type: GgmlType) -> NDArray[Any]:
    """F32 weights in another float type: bf16 by cutting bits off, f16 by rounding, clipped to its range."""
    if source_type is GgmlType.BF16:
        return (weights.view(np.uint32) >> 16).astype(np.uint16)
    if source_type is GgmlType.F16:
        return weights.clip(-65504, 65504).astype(np.float16)
    return weights


def _awkward_weights() -> NDArray[np.float32]:
    rng = np.random.default_rng(2026)
    shape = (N_COLUMNS,)
    normal = rng.standard_normal(shape)
    bits = rng.integers(0, 1 << 32, shape, dtype=np.uint32)
    bits[(bits & 0x7F800000) == 0x7F800000] &= 0xBF7FFFFF
    ramp = np.arange(N_COLUMNS)
    rows = [
        normal * 0.02,
        rng.standard_t(1, shape),
        rng.standard_t(2, shape) * 0.02,
        np.where(ramp % 37 == 5, 50.0, 0.01) * normal,
        (ramp % 32 - 15.5) / 8,  # ties of every rounding
        np.where(ramp % 2, -1.0, 1.0) * (1 + ramp // 64),
        normal * 1e-39,  # subnormal
        normal * 1e-7,  # subnormal f16 scales
        normal * 1e7,  # infinite f16 scales
        np.where(ramp < 300, 0.0, np.where(ramp < 500, -0.375, normal)),  # zero and constant blocks
        np.abs(normal) * 0.02 + 0.5,
        normal * 1e30,  # sums overflow
        np.where(ramp % 32, 0.5 - 2.0**-25, 127.0),  # the float below a half, in Q8_0 blocks of scale 1
    ]
    f32 = np.array(rows, np.float64).astype(np.float32)
    return np.vstack([f32, bits.view(np.float32)])
