"""Q4_K and Q5_K: weight = scale * level - offset, fitted per 32 weights; scales and offsets in 6 bits per 256.

A tile is four super-blocks of 256 weights: thirty-two sub-blocks of 32, one to a lane. Steps for each tile:
fit (scale, offset) by weighted least squares over a table of trial scales; round the scales and offsets to 6 bits of
their super-block's largest; take the levels again from the rounded values; pack.

Follows make_qkx2_quants, quantize_row_q4_K_ref and quantize_row_q5_K_ref (the path without an importance matrix) in
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
    all_lanes,
    any_lane,
    four_bytes,
    four_further,
    half_bits,
    half_value,
    joined,
    largest_of_eight,
    load,
    load_half,
    lower_half,
    nearest,
    nearest_from_zero,
    round_to_even,
    select,
    splat,
    splat_byte,
    splat_half,
    square_root,
    store,
    to_bits,
    to_float,
    upper_half,
)
from mimo_gguf.quantization.kernels.transposes import SQUARE, load_square, store_32_rows

TILE: Final = 32 * LANES  # weights
TILE_BLOCKS: Final = TILE // 256


def trial_numerators(n_levels: int, first: float, step: float, n_steps: int) -> NDArray[np.float32]:
    """Trial k scales the range to first + step * k + n_levels, in f32 and in this order."""
    steps = np.float32(step) * np.arange(n_steps + 1, dtype=np.float32)
    return (np.float32(first) + steps) + np.float32(n_levels)


Q4_K_TRIALS: Final = trial_numerators(15, -1.0, 0.1, 20)
Q5_K_TRIALS: Final = trial_numerators(31, -0.5, 0.1, 15)


@njit
def _weigh(x, weight):
    """Writes every weight's weight in the fit, sqrt(mean x**2) + abs(x); returns minimum, maximum and two sums."""
    sum_x2 = splat(0.0)
    for i in range(0, TILE, LANES):
        sum_x2 = sum_x2 + load(x, i) * load(x, i)
    average = square_root(sum_x2 / splat(32.0))
    low = high = load(x, 0)
    sum_w = average + absolute(low)
    sum_x = sum_w * low
    store(weight, 0, sum_w)
    for i in range(LANES, TILE, LANES):
        value = load(x, i)
        w = average + absolute(value)
        store(weight, i, w)
        low = select(value < low, value, low)
        high = select(value > high, value, high)
        sum_w = sum_w + w
        sum_x = sum_x + w * value
    return select(low > splat(0.0), splat(0.0), low), high, sum_w, sum_x


@njit
def _round_levels(x, inverse, low, n_levels, level):
    """Levels of a trial, wherever they lie."""
    zero, top = splat(0), splat(n_levels)
    for i in range(0, TILE, LANES):
        store(level, i, to_float(nearest(inverse * (load(x, i) - low), zero, top)))


@njit
def _round_levels_in_range(x, inverse, low, n_levels, level):
    """The same where rounding does not wrap around: nearly always."""
    zero, top = splat(0), to_bits(to_float(splat(n_levels)))
    for i in range(0, TILE, LANES):
        store(level, i, nearest_from_zero(inverse * (load(x, i) - low), zero, top))


@njit
def _sums(x, weight, level):
    """The sums of w * level, w * level**2 and w * level * x."""
    sum_l, sum_l2, sum_xl = splat(0.0), splat(0.0), splat(0.0)
    for i in range(0, TILE, LANES):
        step = load(level, i)
        weighted = load(weight, i) * step
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * step
        sum_xl = sum_xl + weighted * load(x, i)
    return sum_l, sum_l2, sum_xl


@njit
def _round_and_sum(x, weight, inverse, low, level):
    """Both at once where no level lies outside the range before it is clamped: in two trials of three."""
    a = _round_and_sum_half(x, weight, lower_half(inverse), lower_half(low), level, 0)
    b = _round_and_sum_half(x, weight, upper_half(inverse), upper_half(low), level, HALF)
    return joined(a[0], b[0]), joined(a[1], b[1]), joined(a[2], b[2])


@njit
def _round_and_sum_half(x, weight, inverse, low, level, first):
    sum_l = sum_l2 = sum_xl = splat_half(0.0)
    for i in range(first, TILE, LANES):
        value = load_half(x, i)
        step = round_to_even(inverse * (value - low))
        store(level, i, step)
        weighted = load_half(weight, i) * step
        sum_l = sum_l + weighted
        sum_l2 = sum_l2 + weighted * step
        sum_xl = sum_xl + weighted * value
    return sum_l, sum_l2, sum_xl


@njit
def _weighted_error(x, weight, level, scale, low):
    error = splat(0.0)
    for i in range(0, TILE, LANES):
        difference = scale * load(level, i) + low - load(x, i)
        error = error + load(weight, i) * (difference * difference)
    return error


@njit
def fit(x, weight, weighed, level, fitted, trials, n_levels):
    """Fits scale and offset of each lane's 32 weights.

    `x`, `weight`, `level`: float32[TILE] (the last is scratch); `weighed`: the lanes' minimum (0 at most), maximum,
    sum of w and sum of w * x. `fitted`: float32[4 * LANES], receives scale, offset, and the inverse scale and minimum
    that gave the winning levels.
    """
    bottom, high, sum_w, sum_x = weighed
    low = bottom
    inverse = to_float(splat(n_levels)) / (high - low)
    scale = splat(1.0) / inverse
    top = to_float(splat(n_levels))
    if all_lanes(inverse * (high - low) < top + splat(0.5)):  # not where it is NaN
        _round_levels_in_range(x, inverse, low, n_levels, level)
    else:
        _round_levels(x, inverse, low, n_levels, level)
    best_error = _weighted_error(x, weight, level, scale, low)
    best_inverse, best_low = inverse, low

    for trial in range(trials.size):
        inverse = splat(trials[trial]) / (high - low)  # low moves whenever a trial wins
        first, last = inverse * (bottom - low), inverse * (high - low)  # every level lies between these, rounded
        lower, upper = select(first < last, first, last), select(first < last, last, first)
        if all_lanes((lower > splat(-0.5)) & (upper < top + splat(0.5))):
            sum_l, sum_l2, sum_xl = _round_and_sum(x, weight, inverse, low, level)
        else:
            if all_lanes((lower > splat(-4e6)) & (upper < splat(4e6))):
                _round_levels_in_range(x, inverse, low, n_levels, level)
            else:
                _round_levels(x, inverse, low, n_levels, level)
            sum_l, sum_l2, sum_xl = _sums(x, weight, level)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        trial_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        trial_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = trial_low > splat(0.0)
        trial_low = select(above, splat(0.0), trial_low)
        trial_scale = select(above, sum_xl / sum_l2, trial_scale)
        error = _weighted_error(x, weight, level, trial_scale, trial_low)
        better = (determinant > splat(0.0)) & (error < best_error)
        best_error = select(better, error, best_error)
        best_inverse = select(better, inverse, best_inverse)
        best_low = select(better, low, best_low)
        scale = select(better, trial_scale, scale)
        low = select(better, trial_low, low)

    # ggml leaves early where high == low; here the inverse is infinite then, so the scale is 0, every level is 0
    # (NaN rounds to 0) and no trial wins, its determinant being 0
    store(fitted, 0, scale)
    store(fitted, LANES, splat(-0.0) - low)
    store(fitted, 2 * LANES, best_inverse)
    store(fitted, 3 * LANES, best_low)


@njit
def _round_scales(fitted, codes, halves, rounded):
    """Rounds the lanes' scales and offsets to 6 bits of their super-block's largest.

    `codes`: int32[2 * LANES] receives the 6-bit values, `halves`: int32[2 * LANES] the f16 bits of the unit of the
    lane's super-block, `rounded`: float32[2 * LANES] their products; scales first, offsets second.
    """
    for kind in range(0, 2 * LANES, LANES):
        value = load(fitted, kind)
        most = largest_of_eight(select(value > splat(0.0), value, splat(0.0)))
        inverse = select(most > splat(0.0), splat(63.0) / most, splat(0.0))
        # ggml stores nearest_int in a byte before it takes the minimum with 63
        code = nearest(inverse * value, splat(-0x400000), splat(0x3FFFFF)) & splat(0xFF)
        code = select(code < splat(63), code, splat(63))
        half = half_bits(most / splat(63.0))
        store(codes, kind, code)
        store(halves, kind, half)
        store(rounded, kind, half_value(half) * to_float(code))


@njit
def take_levels(x, fitted, rounded, level, n_levels):
    """Writes the final levels, int32[TILE]; a lane whose rounded scale is 0 keeps those of the search."""
    zero, top = splat(0), splat(n_levels)
    scale, offset = load(rounded, 0), load(rounded, LANES)
    empty = scale == splat(0.0)
    for i in range(0, TILE, LANES):
        store(level, i, nearest((load(x, i) + offset) / scale, zero, top))
    if any_lane(empty):
        inverse, low = load(fitted, 2 * LANES), load(fitted, 3 * LANES)
        for i in range(0, TILE, LANES):
            searched = nearest(inverse * (load(x, i) - low), zero, top)
            store(level, i, select(empty, searched, load(level, i)))


@njit
def _pack_heads(codes, halves, heads):
    """The sixteen bytes each super-block begins with: d, dmin, 6-bit scales and offsets.

    `heads` receives word k of the super-block whose first lane is `lane` at k * LANES + lane.
    """
    scale, offset = load(codes, 0), load(codes, LANES)
    scale_4, offset_4 = four_further(scale), four_further(offset)
    store(heads, 0, load(halves, 0) | (load(halves, LANES) << splat(16)))
    store(heads, LANES, four_bytes(scale | ((scale_4 >> splat(4)) << splat(6))))
    store(heads, 2 * LANES, four_bytes(offset | ((offset_4 >> splat(4)) << splat(6))))
    store(heads, 3 * LANES, four_bytes((scale_4 & splat(15)) | ((offset_4 & splat(15)) << splat(4))))


@njit
def _pack_low_bits(rows, lane, out, at):
    """Low four bits of eight sub-blocks: 32 bytes for each pair of neighbours."""
    for pair in range(4):
        even = load(rows, (lane + 2 * pair) * 32) & splat_byte(15)
        odd = load(rows, (lane + 2 * pair + 1) * 32) & splat_byte(15)
        store(out, at + 32 * pair, even | (odd << splat_byte(4)))


@njit
def _pack_high_bits(rows, lane, out, at):
    """The fifth bits of eight sub-blocks: bit j of byte i is sub-block j's weight i."""
    byte = splat_byte(0)
    for j in range(8):
        byte = byte | ((load(rows, (lane + j) * 32) >> splat_byte(4)) << splat_byte(j))
    store(out, at, byte)


@njit
def load_tile(src, first, last, x):
    """Weight i of each sub-block to x[i * LANES + lane]; blocks after `last` are `last` again.

    A source that has fewer blocks starts over: an importance row serves every row.
    """
    n_blocks = src.size // 256
    for lane in range(0, LANES, SQUARE):
        even = min(first + lane // 8, last) % n_blocks * 256
        odd = min(first + lane // 8 + 1, last) % n_blocks * 256
        for weight in range(0, 32, SQUARE):
            load_square(src, even + weight, odd + weight, 32, x, weight * LANES + lane, LANES)


@njit
def pack_tile(rows, codes, halves, heads, out, first, n_blocks, n_levels):
    """Writes the tile whose first super-block is `first`: head, high bits if any, low bits.

    `rows`: uint8[TILE], rows[32 * lane + i] is level i of the lane's sub-block. `heads`: int32[4 * LANES], scratch.
    """
    block_bytes = 144 if n_levels == 15 else 176
    _pack_heads(codes, halves, heads)
    words = out.view(np.int32)
    for block in range(first, min(first + TILE_BLOCKS, n_blocks)):
        lane, at = 8 * (block - first), block * block_bytes
        for word in range(4):
            words[at // 4 + word] = heads[word * LANES + lane]
        if n_levels == 15:
            _pack_low_bits(rows, lane, out, at + 16)
        else:
            _pack_high_bits(rows, lane, out, at + 16)
            _pack_low_bits(rows, lane, out, at + 48)


@njit
def _quantize(src, out, trials, n_levels):
    x = np.empty(TILE, np.float32)
    weight = np.empty(TILE, np.float32)
    trial_level = np.empty(TILE, np.float32)
    level = np.empty(TILE, np.int32)
    rows = np.empty(TILE, np.uint8)
    fitted = np.empty(4 * LANES, np.float32)
    codes = np.empty(2 * LANES, np.int32)
    halves = np.empty(2 * LANES, np.int32)
    rounded = np.empty(2 * LANES, np.float32)
    heads = np.empty(4 * LANES, np.int32)
    n_blocks = src.size // 256
    for first in range(0, n_blocks, TILE_BLOCKS):
        load_tile(src, first, n_blocks - 1, x)
        fit(x, weight, _weigh(x, weight), trial_level, fitted, trials, n_levels)
        _round_scales(fitted, codes, halves, rounded)
        take_levels(x, fitted, rounded, level, n_levels)
        store_32_rows(level, rows)
        pack_tile(rows, codes, halves, heads, out, first, n_blocks, n_levels)


@kernel
def quantize_q4_k(src, out, trials):
    """Quantises the flat `src` (whole super-blocks) into the flat uint8 `out`."""
    _quantize(src, out, trials, 15)  # a constant to LLVM: 4 % faster than as an argument


@kernel
def quantize_q5_k(src, out, trials):
    """The same for Q5_K."""
    _quantize(src, out, trials, 31)
