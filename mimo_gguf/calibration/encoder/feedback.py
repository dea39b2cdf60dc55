"""One panel of 256 columns of all rows: scales, and levels with error feedback, sixteen rows at a time.

With the damped Gram matrix H = R R^T (R upper triangular) the output error of a row is |(w - v) R|^2. Column j of
that is r_jj (x_j - v_j), if x_j = w_j + sum over i < j of (w_i - v_i) r_ij / r_jj. So each column in turn takes the
level next to x_j, and the errors made so far are fed into what follows. (LDLQ, Chee et al. 2023; the same numbers as
GPTQ, Frantar et al. 2022, without the inverse.)

The scales of a block are searched when it is reached, with weights r_jj^2. Those of a sub-block are searched again
when it is reached, and the integers around the real scale are judged by the error that the sub-block has in the end,
with feedback inside it.
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numba import njit

from mimo_gguf.quantization.kernels.lanes import load_half, select, splat_half, store
from mimo_gguf.quantization.search.jit import kernel_of
from mimo_gguf.quantization.search.kinds import PANEL
from mimo_gguf.quantization.search.scales import bounded_offset, bounded_scale, choose_scales, fit, nearest_level
from mimo_gguf.quantization.search.vectors import ROWS, floor, fused, lanes_that_hold, quotient

_AROUND: Final = (0, 1, -1, 2)  # the integers tried, from the one below the real number; the likely ones first
_CHUNK: Final = 8  # columns of a trial between two looks whether it can still win


@njit
def _feed(x, errors, factor, first, n):
    """Adds to the columns `first` to `first + n` what the errors of all columns before them are worth there."""
    for column in range(first, first + n, 4):
        a, b = load_half(x, column * ROWS), load_half(x, (column + 1) * ROWS)
        c, d = load_half(x, (column + 2) * ROWS), load_half(x, (column + 3) * ROWS)
        at = column * PANEL
        for before in range(first):
            error = load_half(errors, before * ROWS)
            a = fused(error, splat_half(factor[at + before]), a)
            b = fused(error, splat_half(factor[at + PANEL + before]), b)
            c = fused(error, splat_half(factor[at + 2 * PANEL + before]), c)
            d = fused(error, splat_half(factor[at + 3 * PANEL + before]), d)
        store(x, column * ROWS, a)
        store(x, (column + 1) * ROWS, b)
        store(x, (column + 2) * ROWS, c)
        store(x, (column + 3) * ROWS, d)


@njit
def _target(x, errors, factor, column, first, n):
    """What column `column` aims at, after the errors of the `n` columns before it in its sub-block."""
    target, other = load_half(x, column * ROWS), splat_half(0.0)
    at = column * PANEL + first
    for before in range(0, n - 1, 2):
        target = fused(load_half(errors, before * ROWS), splat_half(factor[at + before]), target)
        other = fused(load_half(errors, (before + 1) * ROWS), splat_half(factor[at + before + 1]), other)
    if n % 2:
        target = fused(load_half(errors, (n - 1) * ROWS), splat_half(factor[at + n - 1]), target)
    return target + other


@njit
def _judge(shape, tile, factor, weights, first, scale, offset, best, errors):
    """The error that a sub-block has with this scale and offset, with feedback; at least `best` if it gave up."""
    x, original = tile
    inverse = quotient(splat_half(1.0), scale)
    total = splat_half(0.0)
    for n in range(shape.sub):
        column = first + n
        target = _target(x, errors, factor, column, first, n)
        value = scale * nearest_level(shape, (target + offset) * inverse) - offset
        store(errors, n * ROWS, load_half(original, column * ROWS) - value)
        missed = target - value
        total = fused(missed * splat_half(weights[column]), missed, total)
        if n % _CHUNK == _CHUNK - 1 and lanes_that_hold(total < best) == 0:
            return total
    return total


@njit
def _choose_with_feedback(shape, tile, factor, weights, first, d, dmin, errors):
    """The integers of a sub-block's scale and offset with the smallest error, among those around the real ones."""
    scale, offset = fit(shape, tile[0], weights, first)
    below, below_offset = floor(quotient(scale, d)), floor(quotient(offset, dmin))
    best, best_number, best_other = splat_half(np.inf), bounded_scale(shape, below), bounded_offset(shape, below_offset)
    for step in range(4):
        number = bounded_scale(shape, below + splat_half(_AROUND[step]))
        for further in range(4 if shape.offset_high > 0 else 1):
            other = bounded_offset(shape, below_offset + splat_half(_AROUND[further]))
            error = _judge(shape, tile, factor, weights, first, d * number, dmin * other, best, errors)
            better = error < best
            best = select(better, error, best)
            best_number = select(better, number, best_number)
            best_other = select(better, other, best_other)
    return best_number, best_other


@njit
def _take_levels(shape, tile, factor, first, scale, offset, errors, levels):
    """Takes the levels of a sub-block one after the other, each after the errors of those before it."""
    x, original = tile
    inverse = quotient(splat_half(1.0), scale)
    own = errors[first * ROWS :]
    for n in range(shape.sub):
        column = first + n
        target = _target(x, own, factor, column, first, n)
        level = nearest_level(shape, (target + offset) * inverse)
        store(levels, column * ROWS, level)
        store(errors, column * ROWS, load_half(original, column * ROWS) - (scale * level - offset))


@njit
def _encode_tile(shape, tile, factor, weights, chosen, scratch, errors, levels):
    """Encodes the blocks of a panel in sixteen rows; `chosen` holds what `choose_scales` gives, block after block."""
    subs = shape.block // shape.sub
    for block in range(PANEL // shape.block):
        mine = chosen[block * (2 + 2 * subs) * ROWS :]
        for sub in range(subs):
            first = block * shape.block + sub * shape.sub
            _feed(tile[0], errors, factor, first, shape.sub)
            if sub == 0:
                choose_scales(shape, tile[0], weights, first, scratch, mine)
            d, dmin = load_half(mine, 0), load_half(mine, ROWS)
            number, other = _choose_with_feedback(shape, tile, factor, weights, first, d, dmin, scratch)
            store(mine, (2 + 2 * sub) * ROWS, number)
            store(mine, (3 + 2 * sub) * ROWS, other)
            _take_levels(shape, tile, factor, first, d * number, dmin * other, errors, levels)


@kernel_of(Path(__file__).parent)
def encode_panel(shape, n_wanted, targets, originals, factor, weights, errors, levels, chosen):
    """Encodes one panel of 256 columns.

    Args:
        shape: what `shape_of` gives.
        n_wanted: the rows that are encoded, from the first; the others keep what they have.
        targets: float32[256 * rows], flat, column after column: the weights, plus what the errors of all panels
            before are worth here. The rows are a multiple of sixteen.
        originals: the same of the weights alone.
        factor: float32[256 * 256], row j column i: r_ij / r_jj of this panel.
        weights: float32[256], r_jj**2.
        errors: receives original minus value, laid out as `targets`.
        levels: likewise the levels.
        chosen: float32, receives d, dmin and the integers of the sub-blocks, block after block; each takes one
            number for every row.
    """
    n_rows = targets.size // PANEL
    n_chosen = chosen.size // n_rows
    x, original = np.empty(PANEL * ROWS, np.float32), np.empty(PANEL * ROWS, np.float32)
    tile_errors, tile_levels = np.empty(PANEL * ROWS, np.float32), np.empty(PANEL * ROWS, np.float32)
    tile_chosen, scratch = np.empty(n_chosen * ROWS, np.float32), np.empty(64 * ROWS, np.float32)
    for row in range(0, n_wanted, ROWS):
        for column in range(PANEL):
            store(x, column * ROWS, load_half(targets, column * n_rows + row))
            store(original, column * ROWS, load_half(originals, column * n_rows + row))
        _encode_tile(shape, (x, original), factor, weights, tile_chosen, scratch, tile_errors, tile_levels)
        for column in range(PANEL):
            store(errors, column * n_rows + row, load_half(tile_errors, column * ROWS))
            store(levels, column * n_rows + row, load_half(tile_levels, column * ROWS))
        for at in range(n_chosen):
            store(chosen, at * n_rows + row, load_half(tile_chosen, at * ROWS))
