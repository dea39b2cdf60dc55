"""Coordinate descent: after the feedback, single levels move while that lowers the output error of their row.

A row at a time, sixteen columns at a time. With the gradient g = (v - w) H, column j would like to move by -g_j / H_jj;
it takes the level next to that if the error falls, and then g moves by the step times row j of H. Columns are taken in
their order, each after the steps of those before. Steps are rare (one column in ten in the first pass, few later), so
looking at sixteen columns costs more than stepping, and a matrix product for each pass would cost much more.

A panel's part of H lies in the second-level cache. So a panel of all rows is done first, then its steps are spread
over the gradients of the other panels, 64 columns at a time.
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numba import njit

from mimo_gguf.quantization.kernels.lanes import load_half, splat_half, store
from mimo_gguf.quantization.search.jit import kernel_of
from mimo_gguf.quantization.search.kinds import PANEL
from mimo_gguf.quantization.search.scales import nearest_level
from mimo_gguf.quantization.search.vectors import ROWS, fused, lanes_that_hold, lowest_bit

_SEGMENT: Final = 4 * ROWS
_ALL: Final = (1 << ROWS) - 1


@njit
def _proposals(shape, values, levels, gradient, at, diagonal, column, scale, offset, threshold, proposed):
    """The columns of sixteen that would gain by a step, as bits; their new values and levels in `proposed`."""
    value, slope, curvature = load_half(values, at), load_half(gradient, at), load_half(diagonal, column)
    shift = splat_half(offset)
    target = value - slope / curvature
    level = nearest_level(shape, (target + shift) / splat_half(scale))
    new = splat_half(scale) * level - shift
    step = new - value
    gain = step * (slope + slope + step * curvature)
    store(proposed, 0, new)
    store(proposed, ROWS, level)
    return lanes_that_hold(gain < splat_half(-threshold))


@njit
def _add_row(gradient, at, gram, gram_at, step):
    step_lanes = splat_half(step)
    for i in range(0, PANEL, ROWS):
        moved = fused(step_lanes, load_half(gram, gram_at + i), load_half(gradient, at + i))
        store(gradient, at + i, moved)


@njit
def _descend_row(shape, row, begin, arrays, gram, diagonal, scales, offsets, threshold, steps, proposed):
    """Takes the steps of one row in the panel that begins at column `begin`; gives their number."""
    values, levels, gradient = arrays
    columns, moves = steps
    n = diagonal.size
    n_steps = 0
    for first in range(begin, begin + PANEL, ROWS):
        sub = row * (n // shape.sub) + first // shape.sub
        scale, offset = scales[sub], offsets[sub]
        if scale == 0:
            continue
        at, pending = row * n + first, _ALL
        while pending:
            pending &= _proposals(
                shape, values, levels, gradient, at, diagonal, first, scale, offset, threshold, proposed
            )
            if not pending:
                break
            lane = lowest_bit(pending)
            step = proposed[lane] - values[at + lane]
            values[at + lane], levels[at + lane] = proposed[lane], proposed[ROWS + lane]
            _add_row(gradient, row * n + begin, gram, (first + lane) * n + begin, step)
            columns[row * PANEL + n_steps], moves[row * PANEL + n_steps] = first + lane, step
            n_steps += 1
            pending = _ALL & ~((2 << lane) - 1)
    return n_steps


@njit
def _spread(gradient, gram, n, segment, row, columns, moves, n_steps):
    """Adds to 64 columns of a row's gradient what its steps in another panel are worth there."""
    at = row * n + segment
    a, b = load_half(gradient, at), load_half(gradient, at + ROWS)
    c, d = load_half(gradient, at + 2 * ROWS), load_half(gradient, at + 3 * ROWS)
    for i in range(row * PANEL, row * PANEL + n_steps):
        move, source = splat_half(moves[i]), columns[i] * n + segment
        a = fused(move, load_half(gram, source), a)
        b = fused(move, load_half(gram, source + ROWS), b)
        c = fused(move, load_half(gram, source + 2 * ROWS), c)
        d = fused(move, load_half(gram, source + 3 * ROWS), d)
    store(gradient, at, a)
    store(gradient, at + ROWS, b)
    store(gradient, at + 2 * ROWS, c)
    store(gradient, at + 3 * ROWS, d)


@kernel_of(Path(__file__).parent)
def descend(shape, values, levels, gradient, gram, diagonal, scales, offsets, thresholds):
    """One pass over all columns of all rows; gives the number of steps.

    Args:
        shape: what `shape_of` gives.
        values, levels, gradient: float32[rows * columns], flat, row after row; they move with the steps.
        gram, diagonal: H and its diagonal, float32, flat.
        scales, offsets: float32[rows * sub-blocks], real numbers.
        thresholds: float32[rows]: what a step must gain.
    """
    n, n_rows = diagonal.size, thresholds.size
    columns, moves = np.empty(n_rows * PANEL, np.int64), np.empty(n_rows * PANEL, np.float32)
    counts, proposed = np.zeros(n_rows, np.int64), np.empty(2 * ROWS, np.float32)
    total = 0
    for begin in range(0, n, PANEL):
        for row in range(n_rows):
            counts[row] = _descend_row(
                shape, row, begin, (values, levels, gradient), gram, diagonal, scales, offsets, thresholds[row],
                (columns, moves), proposed,
            )  # fmt: skip
            total += counts[row]
        for segment in range(0, n, _SEGMENT):
            if begin <= segment < begin + PANEL:
                continue
            for row in range(n_rows):
                if counts[row]:
                    _spread(gradient, gram, n, segment, row, columns, moves, counts[row])
    return total
