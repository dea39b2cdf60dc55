"""Q6_K: weight = scale * level, levels -32..31, fitted per 16 weights; scales in 8 bits per 256.

A tile is two super-blocks of 256 weights: thirty-two sub-blocks of 16, one to a lane. Steps for each tile: fit the
scale by weighted least squares (weights x**2, or the importance row) over nineteen trial scales; round the scales to
8 bits of their super-block's largest; take the levels again from the rounded scales; pack.

Follows make_qx_quants, quantize_row_q6_K_ref and quantize_row_q6_K_impl (with an importance row) in
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
    HALF,
    LANES,
    absolute,
    any_lane,
    half_bits,
    half_value,
    joined,
    larger,
    load,
    load_half,
    lower_half,
    nearest,
    round_to_even,
    select,
    smaller,
    splat,
    splat_byte,
    splat_half,
    store,
    to_float,
    upper_half,
)
from mimo_gguf.quantization.kernels.transposes import load_square, store_16_rows

TILE: Final = 16 * LANES  # weights
TILE_BLOCKS: Final = TILE // 256


def _trial_numerators() -> NDArray[np.float32]:
    """-32 first, then -(32 + 0.1 * k) for k in -9..9 without 0, in f32 and in this order."""
    steps = [k for k in range(-9, 10) if k]
    trials = np.float32(32) + np.float32(0.1) * np.array(steps, np.float32)
    return np.concatenate([np.array([-32], np.float32), -trials])


Q6_K_TRIALS: Final = _trial_numerators()


@njit
def _load_tile(src, first, last, x):
    """Weight i of each sub-block to x[i * LANES + lane]; blocks after `last` are `last` again.

    A source that has fewer blocks starts over: an importance row serves every row.
    """
    for lane in range(0, LANES, 16):
        at = min(first + lane // 16, last) % (src.size // 256) * 256
        load_square(src, at, at + 128, 16, x, lane, LANES)


@njit
def _below(level):
    return smaller(level, splat_half(31.0))


@njit
def _between(level):
    return smaller(larger(level, splat_half(-32.0)), splat_half(31.0))


def _summing(bounded):
    """The sums of w * x * level and w * level**2 of a trial, in one of two variants."""

    @njit
    def sums_of_half(x, weight, weighted, inverse, first):
        sum_lx = sum_l2 = splat_half(0.0)
        for i in range(first, TILE, LANES):
            level = bounded(round_to_even(inverse * load_half(x, i)))
            sum_lx = sum_lx + load_half(weighted, i) * level
            sum_l2 = sum_l2 + load_half(weight, i) * level * level
        return sum_lx, sum_l2

    @njit
    def sums(x, weight, weighted, inverse):
        a = sums_of_half(x, weight, weighted, lower_half(inverse), 0)
        b = sums_of_half(x, weight, weighted, upper_half(inverse), HALF)
        return joined(a[0], b[0]), joined(a[1], b[1])

    return sums


_sums_below = _summing(_below)
_sums_between = _summing(_between)


@njit
def _fit(x, weight, by_square, weighted, fitted, trials):
    """Fits the scale of each lane's 16 weights.

    `x`, `weight`, `weighted`: float32[TILE] (the last is scratch). `fitted`: float32[2 * LANES], receives the scale
    and the inverse scale that gave the winning levels (NaN for a lane of zeros).
    """
    largest, extreme = splat(0.0), splat(0.0)
    for i in range(0, TILE, LANES):
        value = load(x, i)
        magnitude = absolute(value)
        largest = select(magnitude > largest, magnitude, largest)
        if by_square:
            store(weight, i, value * value)
        store(weighted, i, load(weight, i) * value)
    for i in range(TILE - LANES, -1, -LANES):  # backwards: the first of equal magnitudes decides
        extreme = select(absolute(load(x, i)) == largest, load(x, i), extreme)
    empty = largest < splat(1e-15)

    scale, best, best_inverse = splat(0.0), splat(0.0), splat(0.0)
    for trial in range(trials.size):
        inverse = splat(trials[trial]) / extreme
        if trials[trial] > np.float32(-32.45):  # |inverse * x| is at most this, and rounds to 32
            sum_lx, sum_l2 = _sums_below(x, weight, weighted, inverse)
        else:
            sum_lx, sum_l2 = _sums_between(x, weight, weighted, inverse)
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
    store(fitted, LANES, select(empty, splat(np.nan), best_inverse))


@njit
def _extreme_scales(fitted, extremes):
    """For each lane its super-block's first scale of largest magnitude; 0 where that is below ggml's 1e-15."""
    for first in range(0, LANES, 16):
        extreme, largest = np.float32(0.0), np.float32(0.0)
        for lane in range(first, first + 16):
            if abs(fitted[lane]) > largest:
                extreme, largest = fitted[lane], abs(fitted[lane])
        for lane in range(first, first + 16):
            extremes[lane] = np.float32(0.0) if largest < np.float32(1e-15) else extreme


@njit
def _round_scales(fitted, extremes, codes, halves, rounded):
    """Rounds the lanes' scales to int8 multiples of one f16 unit; `rounded` receives the products."""
    inverse = splat(-128.0) / load(extremes, 0)
    code = nearest(inverse * load(fitted, 0), splat(-0x400000), splat(127))
    code = ((code + splat(128)) & splat(0xFF)) - splat(128)  # stored in an int8
    half = half_bits(splat(1.0) / inverse)
    store(codes, 0, code)
    store(halves, 0, half)
    store(rounded, 0, half_value(half) * to_float(code))


@njit
def _take_levels(x, fitted, rounded, level):
    """Writes the final levels plus 32, int32[TILE]; a lane whose rounded scale is 0 keeps those of the search."""
    low, high = splat(-32), splat(31)
    scale = load(rounded, 0)
    for i in range(0, TILE, LANES):
        store(level, i, nearest(load(x, i) / scale, low, high) + splat(32))
    unscaled = scale == splat(0.0)
    if any_lane(unscaled):
        inverse = load(fitted, LANES)
        empty = select(inverse == inverse, splat(0), splat(1)) == splat(1)
        for i in range(0, TILE, LANES):
            searched = nearest(inverse * load(x, i), low, high) + splat(32)
            searched = select(empty, splat(0), searched)
            store(level, i, select(unscaled, searched, load(level, i)))


@njit
def _pack(rows, codes, halves, lane, out, at):
    """128 bytes of low nibbles, 64 of high bit pairs, 16 scales, d, of the super-block whose first lane is `lane`."""
    for part in range(2):
        quarter = lane * 16 + 128 * part
        a = load(rows, quarter)
        b = load(rows, quarter + 32)
        c = load(rows, quarter + 64)
        d = load(rows, quarter + 96)
        nibble, four = splat_byte(15), splat_byte(4)
        store(out, at + 64 * part, (a & nibble) | (c << four))
        store(out, at + 64 * part + 32, (b & nibble) | (d << four))
        high_ab = (a >> four) | ((b >> four) << splat_byte(2))
        high_cd = ((c >> four) << four) | ((d >> four) << splat_byte(6))
        store(out, at + 128 + 32 * part, high_ab | high_cd)
    for j in range(16):
        out[at + 192 + j] = codes[lane + j] & 0xFF
    out[at + 208] = halves[lane] & 0xFF
    out[at + 209] = halves[lane] >> 8


@kernel
def quantize_q6_k(src, out, importance, trials):
    """Quantises the flat `src` (whole super-blocks) into the flat uint8 `out`.

    `importance`: float32, of one row's columns, each the weight of its errors; or empty.
    """
    x = np.empty(TILE, np.float32)
    weight = np.empty(TILE, np.float32)
    weighted = np.empty(TILE, np.float32)
    level = np.empty(TILE, np.int32)
    rows = np.empty(TILE, np.uint8)
    fitted = np.empty(2 * LANES, np.float32)
    extremes = np.empty(LANES, np.float32)
    codes = np.empty(LANES, np.int32)
    halves = np.empty(LANES, np.int32)
    rounded = np.empty(LANES, np.float32)
    n_blocks = src.size // 256
    for first in range(0, n_blocks, TILE_BLOCKS):
        _load_tile(src, first, n_blocks - 1, x)
        if importance.size:
            _load_tile(importance, first, n_blocks - 1, weight)
        _fit(x, weight, not importance.size, weighted, fitted, trials)
        _extreme_scales(fitted, extremes)
        _round_scales(fitted, extremes, codes, halves, rounded)
        _take_levels(x, fitted, rounded, level)
        store_16_rows(level, rows)
        for block in range(first, min(first + TILE_BLOCKS, n_blocks)):
            lane, at = 16 * (block - first), block * 210
            if extremes[lane] == 0:
                for i in range(at, at + 210):
                    out[i] = 0
            else:
                _pack(rows, codes, halves, lane, out, at)
