"""From F32, F16 or BF16 to F16 or BF16: one vector in, one vector out. (libggml widens to F32 fast enough.)

Follows GGML_FP32_TO_FP16 and ggml_compute_fp32_to_bf16 in
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-impl.h
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

import numpy as np
from numba import njit

from mimo_gguf.quantization.kernels.jit import kernel
from mimo_gguf.quantization.kernels.lanes import LANES, half_bits, load_weights, select, splat, store, to_bits


@njit
def _bf16_bits(value):
    """Upper half of the f32, rounded half to even; NaN stays NaN and becomes quiet."""
    bits = to_bits(value)
    upper = bits >> splat(16)
    rounded = (bits + (splat(0x7FFF) + (upper & splat(1)))) >> splat(16)
    return select((bits & splat(0x7FFFFFFF)) > splat(0x7F800000), upper | splat(64), rounded)


@njit
def _load_rest(src, buffer):
    """What follows the last whole vector, as the first lanes of one; `buffer` holds LANES of the source's type."""
    rest = src.size % LANES
    for i in range(rest):
        buffer[i] = src[src.size - rest + i]
    return load_weights(buffer, 0)


@njit
def _copy_rest(vector, out):
    """Counterpart of `_load_rest`: the first lanes of the results."""
    rest = out.size % LANES
    for i in range(rest):
        out[out.size - rest + i] = vector[i]


@kernel
def cast_to_f16(src, out):
    """Rounds the flat `src` to f16 bits in the flat uint16 `out`."""
    for i in range(0, src.size - LANES + 1, LANES):
        store(out, i, half_bits(load_weights(src, i)))
    last = np.empty(LANES, np.uint16)
    store(last, 0, half_bits(_load_rest(src, np.zeros(LANES, src.dtype))))
    _copy_rest(last, out)


@kernel
def cast_to_bf16(src, out):
    """Rounds the flat `src` to bf16 bits in the flat uint16 `out`."""
    for i in range(0, src.size - LANES + 1, LANES):
        store(out, i, _bf16_bits(load_weights(src, i)))
    last = np.empty(LANES, np.uint16)
    store(last, 0, _bf16_bits(_load_rest(src, np.zeros(LANES, src.dtype))))
    _copy_rest(last, out)
