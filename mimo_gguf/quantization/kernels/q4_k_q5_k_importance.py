"""Q4_K and Q5_K with an importance row: the same fit with other weights, and a search for the f16 units.

The fit weighs an error by importance * sqrt(2 * mean x**2 of the super-block + x**2) and tries 37 scales. A
super-block's two units, of its eight scales and of its eight offsets, are then searched as well. That search is a long
chain over eight values; so four tiles are fitted first, and their sixteen super-blocks' thirty-two searches take a
lane each.

Follows make_qkx3_quants, make_qp_quants, quantize_row_q4_K_impl and quantize_row_q5_K_impl in
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-quants.c
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from mimo_gguf.quantization.kernels.jit import kernel
from mimo_gguf.quantization.kernels.lanes import (
    LANES,
    any_lane,
    half_bits,
    half_value,
    load,
    nearest,
    select,
    splat,
    square_root,
    store,
    to_float,
)
from mimo_gguf.quantization.kernels.q4_k_q5_k import (
    TILE,
    TILE_BLOCKS,
    fit,
    load_tile,
    pack_tile,
    take_levels,
    trial_numerators,
)
from mimo_gguf.quantization.kernels.transposes import store_32_rows

Q4_K_IMPORTANCE_TRIALS: Final = trial_numerators(15, -0.9, 0.05, 36)
Q5_K_IMPORTANCE_TRIALS: Final = trial_numerators(31, -0.9, 0.05, 36)

GROUP: Final = LANES // (2 * TILE_BLOCKS)  # tiles whose searches fill the lanes
_CODES: Final = 8 * LANES  # of one search to a lane, sub-block after sub-block
_LOWEST: Final = -0x400000  # what nearest_int can return
_HIGHEST: Final = 0x3FFFFF
UNIT_TRIALS: Final = np.float32(0.1) * np.array([-4, -3, -2, -1, 1, 2, 3, 4], np.float32) + np.float32(63)


@njit
def _spread_of_blocks(x, sigma2):
    """Twice the mean of x**2 of each lane's super-block, its squares summed in the order of the row."""
    a = b = c = d = np.float32(0.0)
    for lane in range(8):
        for i in range(lane, TILE, LANES):
            a += x[i] * x[i]
            b += x[i + 8] * x[i + 8]
            c += x[i + 16] * x[i + 16]
            d += x[i + 24] * x[i + 24]
    for lane in range(8):
        sigma2[lane], sigma2[lane + 8], sigma2[lane + 16], sigma2[lane + 24] = a, b, c, d
    store(sigma2, 0, splat(2.0) * load(sigma2, 0) / splat(256.0))


@njit
def _weigh(x, sigma2, weight):
    """Turns each weight's importance, in `weight`, into its weight in the fit; returns minimum, maximum, two sums."""
    spread = load(sigma2, 0)
    low = high = load(x, 0)
    sum_w = sum_x = splat(-0.0)  # which adds nothing, not even a sign
    for i in range(0, TILE, LANES):
        value = load(x, i)
        w = load(weight, i) * square_root(spread + value * value)
        store(weight, i, w)
        low = select(value < low, value, low)
        high = select(value > high, value, high)
        sum_w = sum_w + w
        sum_x = sum_x + w * value
    return select(low > splat(0.0), splat(0.0), low), high, sum_w, sum_x


@njit
def _take_searches(fitted, sum_w, tile, values, weights):
    """The lanes' scales and offsets, and the weights they have, to the lanes of the search for their unit."""
    for kind in range(2):
        for lane in range(LANES):
            at = lane % 8 * LANES + (2 * tile + kind) * TILE_BLOCKS + lane // 8
            values[at] = fitted[kind * LANES + lane]
            weights[at] = sum_w[lane]


@njit
def _unit_error(values, weights, inverse, top, mask):
    scale, error = splat(1.0) / inverse, splat(0.0)
    for i in range(0, _CODES, LANES):
        value = load(values, i)
        code = nearest(inverse * value, splat(_LOWEST), splat(top)) & splat(mask)
        difference = value - scale * to_float(code)
        error = error + load(weights, i) * difference * difference
    return error


@njit
def _best_inverse(values, weights, trials):
    """63 / largest value, or the trial nearby with the smallest error; also the lanes that have nothing to fit."""
    largest = splat(0.0)
    for i in range(0, _CODES, LANES):
        largest = select(largest > load(values, i), largest, load(values, i))
    best = splat(63.0) / largest
    # only here ggml keeps the codes in bytes and does not bound them
    best_error = _unit_error(values, weights, best, _HIGHEST, 0xFF)
    for trial in range(trials.size):
        inverse = splat(trials[trial]) / largest
        error = _unit_error(values, weights, inverse, 63, -1)
        better = error < best_error
        best_error = select(better, error, best_error)
        best = select(better, inverse, best)
    return best, largest < splat(np.float32(1e-15))


@njit
def _improve_codes(values, weights, codes, sum_lx, sum_l2):
    """One round over the eight codes: each moves where that fits better. Returns the sums and whether any did."""
    moved = False
    for i in range(0, _CODES, LANES):
        value, w, code = load(values, i), load(weights, i), load(codes, i)
        level = to_float(code)
        rest_lx = sum_lx - w * value * level
        rest_l2 = sum_l2 - w * level * level
        new_code = nearest(value * rest_l2 / rest_lx, splat(_LOWEST), splat(63))
        new_level = to_float(new_code)
        new_lx = rest_lx + w * value * new_level
        new_l2 = rest_l2 + w * new_level * new_level
        better = (rest_lx > splat(0.0)) & (rest_l2 > splat(0.0)) & (new_code != code)
        better = better & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
        store(codes, i, select(better, new_code & splat(0xFF), code))
        sum_lx = select(better, new_lx, sum_lx)
        sum_l2 = select(better, new_l2, sum_l2)
        moved |= any_lane(better)
    return sum_lx, sum_l2, moved


@njit
def _search_units(values, weights, codes, halves, trials):
    """For each lane the unit, as f16 bits, and eight bytes times which its values are fitted best.

    `values`, `weights`: float32[_CODES]; `codes`: int32[_CODES] and `halves`: int32[LANES] receive the results.
    """
    inverse, empty = _best_inverse(values, weights, trials)
    sum_lx, sum_l2 = splat(0.0), splat(0.0)
    for i in range(0, _CODES, LANES):
        value, w = load(values, i), load(weights, i)
        code = nearest(inverse * value, splat(_LOWEST), splat(63))
        store(codes, i, code & splat(0xFF))
        sum_lx = sum_lx + w * value * to_float(code)
        sum_l2 = sum_l2 + w * to_float(code) * to_float(code)
    for _ in range(5):  # a lane where nothing moved has nothing to move in the next round either
        sum_lx, sum_l2, moved = _improve_codes(values, weights, codes, sum_lx, sum_l2)
        if not moved:
            break
    unit = select(sum_l2 > splat(0.0), sum_lx / sum_l2, splat(0.0))
    store(halves, 0, half_bits(select(empty, splat(0.0), unit)))
    for i in range(0, _CODES, LANES):
        store(codes, i, select(empty, splat(0), load(codes, i)))


@njit
def _keep_six_bits(codes, n_levels):
    """Codes above 63 (a negative scale's): Q5_K bounds them, Q4_K lets the upper bits of 0-3 run into those of 4-7."""
    for i in range(0, _CODES, LANES):
        code = load(codes, i)
        if n_levels == 31:
            store(codes, i, select(code < splat(63), code, splat(63)))
        elif i >= _CODES // 2:
            above = (code >> splat(4)) | (load(codes, i - _CODES // 2) >> splat(6))
            store(codes, i, (code & splat(15)) | ((above & splat(3)) << splat(4)))
    if n_levels == 15:
        for i in range(0, _CODES // 2, LANES):
            store(codes, i, load(codes, i) & splat(63))


@njit
def _take_codes(found, units, tile, codes, halves, rounded):
    """The way back: codes, f16 units and their products of one tile's lanes, scales first, offsets second."""
    for kind in range(2):
        for lane in range(LANES):
            search = (2 * tile + kind) * TILE_BLOCKS + lane // 8
            codes[kind * LANES + lane] = found[lane % 8 * LANES + search]
            halves[kind * LANES + lane] = units[search]
        at = kind * LANES
        store(rounded, at, half_value(load(halves, at)) * to_float(load(codes, at)))


@njit
def _quantize(src, out, importance, trials, n_levels, unit_trials):
    x = np.empty((GROUP, TILE), np.float32)
    weight = np.empty(TILE, np.float32)
    trial_level = np.empty(TILE, np.float32)
    level = np.empty(TILE, np.int32)
    rows = np.empty(TILE, np.uint8)
    fitted = np.empty((GROUP, 4 * LANES), np.float32)
    lane_values = np.empty(LANES, np.float32)
    values = np.zeros(_CODES, np.float32)
    weights = np.zeros(_CODES, np.float32)
    found = np.empty(_CODES, np.int32)
    units = np.empty(LANES, np.int32)
    codes = np.empty(2 * LANES, np.int32)
    halves = np.empty(2 * LANES, np.int32)
    rounded = np.empty(2 * LANES, np.float32)
    heads = np.empty(4 * LANES, np.int32)
    n_blocks = src.size // 256
    for group in range(0, n_blocks, GROUP * TILE_BLOCKS):
        n_tiles = min(GROUP, (n_blocks - group + TILE_BLOCKS - 1) // TILE_BLOCKS)
        for tile in range(n_tiles):
            first = group + tile * TILE_BLOCKS
            load_tile(src, first, n_blocks - 1, x[tile])
            load_tile(importance, first, n_blocks - 1, weight)
            _spread_of_blocks(x[tile], lane_values)
            weighed = _weigh(x[tile], lane_values, weight)
            fit(x[tile], weight, weighed, trial_level, fitted[tile], trials, n_levels)
            store(lane_values, 0, weighed[2] + splat(0.0))  # -0 becomes 0, as in ggml's second sum of the weights
            _take_searches(fitted[tile], lane_values, tile, values, weights)
        _search_units(values, weights, found, units, unit_trials)
        _keep_six_bits(found, n_levels)
        for tile in range(n_tiles):
            first = group + tile * TILE_BLOCKS
            _take_codes(found, units, tile, codes, halves, rounded)
            take_levels(x[tile], fitted[tile], rounded, level, n_levels)
            store_32_rows(level, rows)
            pack_tile(rows, codes, halves, heads, out, first, n_blocks, n_levels)


@kernel
def quantize_q4_k_by_importance(src, out, importance, trials, unit_trials):
    """Quantises the flat `src` (whole rows) into the flat uint8 `out`; `importance`: float32, of one row's columns."""
    _quantize(src, out, importance, trials, 15, unit_trials)


@kernel
def quantize_q5_k_by_importance(src, out, importance, trials, unit_trials):
    """The same for Q5_K."""
    _quantize(src, out, importance, trials, 31, unit_trials)
