"""The search alone, for rows whose inputs are not known: every weight takes the level next to it."""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code=misc

from __future__ import annotations

import numpy as np

from mimo_gguf.quantization.kernels.lanes import load_half, splat_half, store
from mimo_gguf.quantization.kernels.transposes import load_square
from mimo_gguf.quantization.search.jit import kernel_of
from mimo_gguf.quantization.search.scales import choose_scales, nearest_level
from mimo_gguf.quantization.search.vectors import ROWS, quotient, step_of


@step_of
def _take_levels(shape, x, chosen, levels):
    """Writes the levels of one block; `chosen` holds its scales."""
    d, dmin = load_half(chosen, 0), load_half(chosen, ROWS)
    for sub in range(shape.subs):
        scale = d * load_half(chosen, (2 + 2 * sub) * ROWS)
        offset = dmin * load_half(chosen, (3 + 2 * sub) * ROWS)
        inverse = quotient(splat_half(1.0), scale)
        for column in range(sub * shape.sub, (sub + 1) * shape.sub):
            value = load_half(x, column * ROWS) + offset
            store(levels, column * ROWS, nearest_level(shape, value * inverse))


@kernel_of()
def search_rows(shape, trials, n_columns, rows, importance, levels, chosen):
    """Searches the blocks of whole rows.

    Args:
        shape, trials: what `shape_of` gives.
        n_columns: of each row; a multiple of the block.
        rows: float32[rows * columns], flat; the rows are a multiple of sixteen.
        importance: float32[columns].
        levels: receives the levels, laid out as `rows`.
        chosen: float32, receives for each sixteen rows and each block d, dmin and the integers of the sub-blocks; each
            takes sixteen numbers.
    """
    x, tile_levels = np.empty(shape.block * ROWS, np.float32), np.empty(shape.block * ROWS, np.float32)
    weights = np.empty(shape.block, np.float32)
    fits, trial = np.empty(32 * ROWS, np.float32), np.empty(32 * ROWS, np.float32)
    tile_chosen = np.empty((2 + 2 * shape.subs) * ROWS, np.float32)
    done = 0
    for row in range(0, rows.size // n_columns, ROWS):
        for block in range(0, n_columns, shape.block):
            begin = row * n_columns + block
            for column in range(0, shape.block, ROWS):
                at = begin + column
                load_square(rows, at, at + 8 * n_columns, n_columns, x, column * ROWS, ROWS)
            for column in range(shape.block):
                weights[column] = importance[block + column]
            choose_scales(shape, trials, x, weights, 0, fits, trial, tile_chosen, 0)
            _take_levels(shape, x, tile_chosen, tile_levels)
            for column in range(0, shape.block, ROWS):
                at = column * ROWS
                load_square(tile_levels, at, at + 8 * ROWS, ROWS, levels, begin + column, n_columns)
            for i in range(tile_chosen.size):
                chosen[done + i] = tile_chosen[i]
            done += tile_chosen.size
