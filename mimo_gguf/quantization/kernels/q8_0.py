"""Q8_0: weight = scale * level, levels -127..127, one f16 scale per 32 weights.

No search and no sums, so the order of the weights does not matter: each block is read as one vector. Only the scales
of thirty-two blocks are computed side by side, a lane to each.

Follows quantize_row_q8_0_ref in https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-quants.c
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

import numpy as np
from numba import njit

from mimo_gguf.quantization.kernels.jit import kernel
from mimo_gguf.quantization.kernels.lanes import (
    LANES,
    absolute,
    from_bits,
    half_bits,
    largest_lane,
    load,
    load_weights,
    select,
    splat,
    store,
    to_bits,
    truncated,
)


@njit
def _rounded(value):
    """roundf: halves away from zero. What no int32 holds becomes 0, as the low byte of x86's conversion does."""
    sign = to_bits(value) & splat(0x80000000)
    almost_half = from_bits(sign | splat(0x3EFFFFFF))  # 0.5 would carry 0.49999997 up to 1
    shifted = value + almost_half
    return truncated(select(absolute(shifted) < splat(2147483648.0), shifted, splat(0.0)))


@kernel
def quantize_q8_0(src, out):
    """Quantises the flat `src` (whole blocks of 32) into the flat uint8 `out`."""
    largest = np.zeros(LANES, np.float32)
    inverse = np.empty(LANES, np.float32)
    halves = np.empty(LANES, np.int32)
    n_blocks = src.size // 32
    for first in range(0, n_blocks, LANES):
        n = min(LANES, n_blocks - first)
        for k in range(n):
            largest[k] = largest_lane(absolute(load_weights(src, (first + k) * 32)))
        scale = load(largest, 0) / splat(127.0)
        store(halves, 0, half_bits(scale))
        store(inverse, 0, select(scale == splat(0.0), splat(0.0), splat(1.0) / scale))
        for k in range(n):
            at = (first + k) * 34
            out[at] = halves[k] & 0xFF
            out[at + 1] = halves[k] >> 8
            store(out, at + 2, _rounded(load_weights(src, (first + k) * 32) * splat(inverse[k])))
