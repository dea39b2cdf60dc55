"""Q6_K: weight = scale * level, levels -32..31, fitted per 16 weights; scales in 8 bits per 256.

A tile is one super-block of 256 weights: sixteen sub-blocks of 16, one to a lane. Steps for each tile: fit the scale
by weighted least squares (weights x**2) over nineteen trial scales; round the sixteen scales to 8 bits of the largest;
take the levels again from the rounded scales; pack.

Follows make_qx_quants and quantize_row_q6_K_ref (the path without an importance matrix) in
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-quants.c
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mimo_gguf.quantization.kernels.jit import kernel
from mimo_gguf.quantization.kernels.lanes import (
    absolute,
    any_lane,
    half_bits,
    half_value,
    load,
    nearest,
    nearest_in_range,
    select,
    splat,
    store,
    to_float,
    transpose,
)


def _trial_numerators() -> NDArray[np.float32]:
    """-32 first, then -(32 + 0.1 * k) for k in -9..9 without 0, in f32 and in this order."""
    steps = [k for k in range(-9, 10) if k]
    trials = np.float32(32) + np.float32(0.1) * np.array(steps, np.float32)
    return np.concatenate([np.array([-32], np.float32), -trials])


Q6_K_TRIALS: Final = _trial_numerators()


@njit
def _fit(x, weight, weighted, fitted, trials):
    """Fits the scale of each lane's 16 weights.

    `x`, `weight`, `weighted`: float32[16 * 16] tiles (the last two are scratch). `fitted`: float32[2 * 16], receives
    the scale and the inverse scale that gave the winning levels (NaN for a lane of zeros).
    """
    low, high = splat(-32.0), splat(31.0)
    largest, extreme = splat(0.0), splat(0.0)
    for i in range(0, x.size, 16):
        value = load(x, i)
        magnitude = absolute(value)
        largest = select(magnitude > largest, magnitude, largest)
        store(weight, i, value * value)
        store(weighted, i, value * value * value)
    for i in range(x.size - 16, -1, -16):  # backwards: the first of equal magnitudes decides
        extreme = select(absolute(load(x, i)) == largest, load(x, i), extreme)
    empty = largest < splat(1e-15)

    scale, best, best_inverse = splat(0.0), splat(0.0), splat(0.0)
    for trial in range(trials.size):
        inverse = splat(trials[trial]) / extreme
        sum_lx, sum_l2 = splat(0.0), splat(0.0)
        for i in range(0, x.size, 16):
            level = nearest_in_range(inverse * load(x, i), low, high)  # |inverse * x| < 33
            sum_lx = sum_lx + load(weighted, i) * level
            sum_l2 = sum_l2 + load(weight, i) * level * level
        trial_scale = sum_lx / sum_l2
        if trial == 0:
            scale = select(sum_l2 == splat(0.0), splat(0.0), trial_scale)
            best, best_inverse = scale * sum_lx, inverse
        else:
            better = (sum_l2 > splat(0.0)) & (sum_lx * sum_lx > best * sum_l2)
            scale = select(better, trial_scale, scale)
            best = select(better, trial_scale * sum_lx, best)
            best_inverse = select(better, inverse, best_inverse)
    store(fitted, 0, select(empty, splat(0.0), scale))
    store(fitted, 16, select(empty, splat(np.nan), best_inverse))


@njit
def _extreme_scale(fitted):
    """The first scale of largest magnitude, and 0 where that magnitude is below ggml's 1e-15."""
    extreme, largest = np.float32(0.0), np.float32(0.0)
    for lane in range(16):
        if abs(fitted[lane]) > largest:
            extreme, largest = fitted[lane], abs(fitted[lane])
    return np.float32(0.0) if largest < np.float32(1e-15) else extreme


@njit
def _round_scales(fitted, extreme, codes, halves, rounded):
    """Rounds the lanes' scales to int8 multiples of one f16 unit; `rounded` receives the products."""
    inverse = splat(-128.0) / splat(extreme)
    code = nearest(inverse * load(fitted, 0), splat(-0x400000), splat(127))
    code = ((code + splat(128)) & splat(0xFF)) - splat(128)  # stored in an int8
    half = half_bits(splat(1.0) / inverse)
    store(codes, 0, code)
    store(halves, 0, half)
    store(rounded, 0, half_value(half) * to_float(code))


@njit
def _take_levels(x, fitted, rounded, level):
    """Writes the final levels plus 32, int32[16 * 16]; a lane whose rounded scale is 0 keeps those of the search."""
    low, high = splat(-32), splat(31)
    scale = load(rounded, 0)
    for i in range(0, x.size, 16):
        store(level, i, nearest(load(x, i) / scale, low, high) + splat(32))
    unscaled = scale == splat(0.0)
    if any_lane(unscaled):
        inverse = load(fitted, 16)
        empty = select(inverse == inverse, splat(0), splat(1)) == splat(1)
        for i in range(0, x.size, 16):
            searched = nearest(inverse * load(x, i), low, high) + splat(32)
            searched = select(empty, splat(0), searched)
            store(level, i, select(unscaled, searched, load(level, i)))


@njit
def _pack(rows, codes, halves, out, at):
    """128 bytes of low nibbles, 64 of high bit pairs, 16 scales, d."""
    for part in range(2):
        for half in range(0, 32, 16):
            a = load(rows, 128 * part + half)
            b = load(rows, 128 * part + half + 32)
            c = load(rows, 128 * part + half + 64)
            d = load(rows, 128 * part + half + 96)
            nibble = splat(15)
            store(out, at + 64 * part + half, (a & nibble) | ((c & nibble) << splat(4)))
            store(out, at + 64 * part + half + 32, (b & nibble) | ((d & nibble) << splat(4)))
            high_ab = (a >> splat(4)) | ((b >> splat(4)) << splat(2))
            high_cd = ((c >> splat(4)) << splat(4)) | ((d >> splat(4)) << splat(6))
            store(out, at + 128 + 32 * part + half, high_ab | high_cd)
    store(out, at + 192, load(codes, 0))
    out[at + 208] = halves[0] & 0xFF
    out[at + 209] = halves[0] >> 8


@kernel
def quantize_q6_k(src, out, trials):
    """Quantises the flat `src` (whole super-blocks) into the flat uint8 `out`."""
    x = np.empty(256, np.float32)
    weight = np.empty(256, np.float32)
    weighted = np.empty(256, np.float32)
    level = np.empty(256, np.int32)
    rows = np.empty(256, np.int32)
    fitted = np.empty(32, np.float32)
    codes = np.empty(16, np.int32)
    halves = np.empty(16, np.int32)
    rounded = np.empty(16, np.float32)
    for block in range(src.size // 256):
        transpose(src, block * 256, block * 256 + 128, 16, x, 0, 16)
        _fit(x, weight, weighted, fitted, trials)
        extreme = _extreme_scale(fitted)
        if extreme == 0:
            for i in range(block * 210, block * 210 + 210):
                out[i] = 0
            continue
        _round_scales(fitted, extreme, codes, halves, rounded)
        _take_levels(x, fitted, rounded, level)
        transpose(level, 0, 128, 16, rows, 0, 16)
        _pack(rows, codes, halves, out, block * 210)
