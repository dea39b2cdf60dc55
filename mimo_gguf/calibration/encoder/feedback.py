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

import numpy as np

from mimo_gguf.quantization.kernels.lanes import load_half, select, smaller, splat_half, store
from mimo_gguf.quantization.kernels.transposes import load_square
from mimo_gguf.quantization.search.jit import kernel_of
from mimo_gguf.quantization.search.kinds import PANEL
from mimo_gguf.quantization.search.scales import bounded_offset, bounded_scale, choose_scales, fit, nearest_level
from mimo_gguf.quantization.search.vectors import ROWS, everywhere, floor, fused, quotient, step_of


@step_of
def _feed(x, errors, factor, first, n):
    """Adds to the columns `first` to `first + n` what the errors of all columns before them are worth there."""
    for column in range(first, first + n, 4):
        a, b = load_half(x, column * ROWS), load_half(x, (column + 1) * ROWS)
        c, d = load_half(x, (column + 2) * ROWS), load_half(x, (column + 3) * ROWS)
        at = column * PANEL
        for before in range(first):
            error = load_half(errors, before * ROWS)
            a = fused(error, everywhere(factor, at + before), a)
            b = fused(error, everywhere(factor, at + PANEL + before), b)
            c = fused(error, everywhere(factor, at + 2 * PANEL + before), c)
            d = fused(error, everywhere(factor, at + 3 * PANEL + before), d)
        store(x, column * ROWS, a)
        store(x, (column + 1) * ROWS, b)
        store(x, (column + 2) * ROWS, c)
        store(x, (column + 3) * ROWS, d)


@step_of
def _judge(shape, x, original, factor, weights, first, scale, offset, errors):
    """The error that a sub-block has in the end, with feedback, under each of two scales and offsets.

    `scale` and `offset` hold two each. Two at a time, because each column waits for the one before.
    """
    scale_a, scale_b = scale
    offset_a, offset_b = offset
    inverse_a, inverse_b = quotient(splat_half(1.0), scale_a), quotient(splat_half(1.0), scale_b)
    total_a = total_b = splat_half(0.0)
    for column in range(first, first + shape.sub):
        target_a = target_b = load_half(x, column * ROWS)
        at = column * PANEL + first
        for before in range(column - first):
            share = everywhere(factor, at + before)
            target_a = fused(load_half(errors, 2 * before * ROWS), share, target_a)
            target_b = fused(load_half(errors, (2 * before + 1) * ROWS), share, target_b)
        value_a = scale_a * nearest_level(shape, (target_a + offset_a) * inverse_a) - offset_a
        value_b = scale_b * nearest_level(shape, (target_b + offset_b) * inverse_b) - offset_b
        aim, own = load_half(original, column * ROWS), 2 * (column - first) * ROWS
        store(errors, own, aim - value_a)
        store(errors, own + ROWS, aim - value_b)
        weight, missed_a, missed_b = everywhere(weights, column), target_a - value_a, target_b - value_b
        total_a = fused(missed_a * weight, missed_a, total_a)
        total_b = fused(missed_b * weight, missed_b, total_b)
    return total_a, total_b


@step_of
def _choose_with_feedback(shape, x, original, factor, weights, first, d, dmin, scale, offset, errors):
    """The integers of a sub-block's scale and offset with the smallest error, among those around the real ones."""
    below, below_offset = floor(quotient(scale, d)), floor(quotient(offset, dmin))
    best, best_number, best_other = splat_half(np.inf), bounded_scale(shape, below), bounded_offset(shape, below_offset)
    for pair in range(8 if shape.offset_high > 0 else 2):
        shift, further = splat_half(2 * (pair % 2) - 1), splat_half(pair // 2 - 1)
        other = bounded_offset(shape, below_offset + further)
        a = bounded_scale(shape, below + shift)
        b = bounded_scale(shape, below + shift + splat_half(1.0))
        error_a, error_b = _judge(
            shape, x, original, factor, weights, first, (d * a, d * b), (dmin * other, dmin * other), errors
        )
        number, error = select(error_b < error_a, b, a), smaller(error_b, error_a)
        better = error < best
        best = select(better, error, best)
        best_number = select(better, number, best_number)
        best_other = select(better, other, best_other)
    return best_number, best_other


@step_of
def _take_levels(shape, x, original, factor, first, scale, offset, errors, levels):
    """Takes the levels of a sub-block one after the other, each after the errors of those before it."""
    inverse = quotient(splat_half(1.0), scale)
    for column in range(first, first + shape.sub):
        target = load_half(x, column * ROWS)
        for before in range(first, column):
            target = fused(load_half(errors, before * ROWS), everywhere(factor, column * PANEL + before), target)
        level = nearest_level(shape, (target + offset) * inverse)
        value = scale * level - offset
        store(levels, column * ROWS, level)
        store(errors, column * ROWS, load_half(original, column * ROWS) - value)


@step_of
def _encode_sub_block(
    shape, trials, x, original, factor, weights, first, chosen, errors, levels, scratch, other_scratch
):
    """Encodes a tile's sub-block that begins at column `first`; before a block's first one, searches its scales."""
    at = first // shape.block * (2 + 2 * shape.subs) * ROWS
    _feed(x, errors, factor, first, shape.sub)
    if first % shape.block == 0:
        choose_scales(shape, trials, x, weights, first, scratch, other_scratch, chosen, at)
        scale, offset = load_half(scratch, 0), load_half(scratch, ROWS)  # that it fitted to this sub-block
    else:
        scale, offset = fit(shape, trials, x, weights, first)
    d, dmin = load_half(chosen, at), load_half(chosen, at + ROWS)
    number, other = splat_half(shape.scale_low), splat_half(0.0)
    if shape.scale_high > shape.scale_low:
        number, other = _choose_with_feedback(
            shape, x, original, factor, weights, first, d, dmin, scale, offset, scratch
        )
    own = at + (2 + 2 * (first % shape.block // shape.sub)) * ROWS
    store(chosen, own, number)
    store(chosen, own + ROWS, other)
    _take_levels(shape, x, original, factor, first, d * number, dmin * other, errors, levels)


@step_of
def _tile_of(rows, at, n, tile):
    """Fills a tile with sixteen rows' part of a panel, which begins at `at` in rows of `n` columns."""
    for column in range(0, PANEL, ROWS):
        load_square(rows, at + column, at + column + 8 * n, n, tile, column * ROWS, ROWS)


@step_of
def _rows_of(tile, rows, at, n):
    """The reverse: writes a tile to the rows that it is a part of."""
    for column in range(0, PANEL, ROWS):
        load_square(tile, column * ROWS, (column + 8) * ROWS, ROWS, rows, at + column, n)


@kernel_of(Path(__file__).parent)
def turn_panel(rows, n_columns, first, turned):
    """Writes the panel that begins at column `first` of rows column after column: float32[256 * rows] `turned`."""
    n_rows = turned.size // PANEL
    for row in range(0, n_rows, ROWS):
        for column in range(first, first + PANEL, ROWS):
            at = row * n_columns + column
            load_square(rows, at, at + 8 * n_columns, n_columns, turned, (column - first) * n_rows + row, n_rows)


@kernel_of(Path(__file__).parent)
def encode_panel(
    shape,
    trials,
    n_wanted,
    n_columns,
    first_column,
    targets,
    originals,
    factor,
    weights,
    missed,
    errors,
    levels,
    chosen,
):
    """Encodes one panel of 256 columns.

    Args:
        shape, trials: what `shape_of` gives.
        n_wanted: the rows that are encoded, from the first; the others keep what they have.
        n_columns, first_column: of the rows; where the panel begins.
        targets: float32[256 * rows], flat, column after column: the weights, plus what the errors of all panels
            before are worth here. The rows are a multiple of sixteen.
        originals: float32[rows * n_columns], row after row: the weights alone.
        factor: float32[256 * 256], row j column i: r_ij / r_jj of this panel.
        weights: float32[256], r_jj**2.
        missed: receives original minus value, laid out as `targets`.
        errors: receives value minus original, laid out as `originals`.
        levels: receives the levels, float32[256 * rows]: sixteen rows after sixteen rows, each column after column.
        chosen: float32, receives d, dmin and the integers of the sub-blocks, block after block; each takes one
            number for every row.
    """
    n_rows = targets.size // PANEL
    n_chosen = chosen.size // n_rows
    x, original = np.empty(PANEL * ROWS, np.float32), np.empty(PANEL * ROWS, np.float32)
    tile_errors, tile_levels = np.empty(PANEL * ROWS, np.float32), np.empty(PANEL * ROWS, np.float32)
    tile_chosen = np.empty(n_chosen * ROWS, np.float32)
    scratch, other_scratch = np.empty(64 * ROWS, np.float32), np.empty(32 * ROWS, np.float32)
    for row in range(0, n_wanted, ROWS):
        corner = row * n_columns + first_column
        _tile_of(originals, corner, n_columns, original)
        for column in range(PANEL):
            store(x, column * ROWS, load_half(targets, column * n_rows + row))
        for first in range(0, PANEL, shape.sub):
            _encode_sub_block(
                shape, trials, x, original, factor, weights, first, tile_chosen,
                tile_errors, tile_levels, scratch, other_scratch,
            )  # fmt: skip
        for column in range(PANEL):
            miss = load_half(tile_errors, column * ROWS)
            store(missed, column * n_rows + row, miss)
            store(tile_errors, column * ROWS, splat_half(0.0) - miss)
            store(levels, row * PANEL + column * ROWS, load_half(tile_levels, column * ROWS))
        _rows_of(tile_errors, errors, corner, n_columns)
        for i in range(n_chosen):
            store(chosen, i * n_rows + row, load_half(tile_chosen, i * ROWS))
