"""Coordinate descent: after the feedback, levels and scales move while that lowers the output error of their row.

A row at a time, sixteen columns at a time. With the gradient g = (v - w) H, column j would like to move by -g_j / H_jj;
it takes the level next to that if the error falls, and then g moves by the step times row j of H. Columns are taken in
their order, each after the steps of those before. Before the columns of a sub-block the integer of its scale may move
likewise; not of kinds with an offset, where that gains nothing. Steps are rare, one column in ten in the first pass and
fewer later, so looking at sixteen columns costs more than stepping, and a matrix product for each pass much more.

Panel after panel, all rows together, because a panel's part of H and of the gradients lies in the second-level cache.
A step moves the gradient of its own panel at once. That of another panel catches up when it is that panel's turn.
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from mimo_gguf.quantization.kernels.lanes import load_half, splat_half, store
from mimo_gguf.quantization.search.jit import kernel_of
from mimo_gguf.quantization.search.kinds import PANEL
from mimo_gguf.quantization.search.scales import nearest_level
from mimo_gguf.quantization.search.vectors import (
    ROWS,
    everywhere,
    fused,
    lanes_that_hold,
    lowest_bit,
    step_of,
    sum_of_lanes,
)

_SEGMENT: Final = 4 * ROWS
MOST_STEPS: Final = 2 * PANEL  # of a row in a panel: each weight with its scale, and once alone
_ALL: Final = (1 << ROWS) - 1


@step_of
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


@step_of
def _add_row(gradient, at, gram, gram_at, step):
    step_lanes = splat_half(step)
    for i in range(0, PANEL, ROWS):
        moved = fused(step_lanes, load_half(gram, gram_at + i), load_half(gradient, at + i))
        store(gradient, at + i, moved)


@step_of
def _take_step(row, begin, column, value, arrays, gram, n, steps, n_steps):
    """Moves one value, records the step, and adds to the row's gradient in its panel what the step is worth."""
    values, _, gradient = arrays
    columns, moves = steps
    step = value - values[row * n + column]
    values[row * n + column] = value
    _add_row(gradient, row * n + begin, gram, column * n + begin, step)
    columns[n_steps], moves[n_steps] = column - begin, step
    return n_steps + 1


@step_of
def _better_number(shape, row, first, arrays, gram, n, unit, number, direction):
    """The integer of a sub-block's scale with the smallest error, if its levels stay."""
    _, levels, gradient = arrays
    slope = splat_half(0.0)
    for i in range(0, shape.sub, ROWS):
        part = splat_half(unit) * load_half(levels, row * n + first + i)
        store(direction, i, part)
        slope = fused(part, load_half(gradient, row * n + first + i), slope)
    curvature = splat_half(0.0)
    for i in range(0, shape.sub, ROWS):
        bent = splat_half(0.0)
        for j in range(shape.sub):
            bent = fused(everywhere(direction, j), load_half(gram, (first + j) * n + first + i), bent)
        curvature = fused(bent, load_half(direction, i), curvature)
    bend = sum_of_lanes(curvature)
    if not bend > 0:
        return number
    wanted = np.rint(number - sum_of_lanes(slope) / bend)
    return np.float32(min(max(wanted, shape.scale_low), shape.scale_high))


@step_of
def _move_number(shape, row, begin, first, arrays, gram, n, scales, at, threshold, steps, n_steps, direction):
    """Moves the integer of a sub-block's scale if the error falls by that."""
    units, numbers = scales
    number = _better_number(shape, row, first, arrays, gram, n, units[at], numbers[at], direction)
    by = number - numbers[at]
    if by == 0:
        return n_steps
    values, levels, gradient = arrays
    gain = np.float32(0.0)
    scale = units[at] * number
    for i in range(shape.sub):
        direction[i] = scale * levels[row * n + first + i] - values[row * n + first + i]
    for i in range(0, shape.sub, ROWS):
        bent = load_half(gradient, row * n + first + i)
        bent = bent + bent
        for j in range(shape.sub):
            bent = fused(everywhere(direction, j), load_half(gram, (first + j) * n + first + i), bent)
        gain += sum_of_lanes(bent * load_half(direction, i))
    if gain >= -threshold:
        return n_steps
    numbers[at] = number
    for i in range(shape.sub):
        value = scale * levels[row * n + first + i]
        n_steps = _take_step(row, begin, first + i, value, arrays, gram, n, steps, n_steps)
    return n_steps


@step_of
def _descend_row(
    shape, move_numbers, row, begin, arrays, gram, diagonal, scales, offsets, threshold, steps, record, proposed
):
    """Takes the steps of one row in the panel that begins at column `begin`; gives their number.

    They are recorded from the place `record` on.
    """
    values, levels, gradient = arrays
    units, numbers = scales
    n = diagonal.size
    n_steps = record
    for first in range(begin, begin + PANEL, ROWS):
        sub = row * (n // shape.sub) + first // shape.sub
        if units[sub] == 0:
            continue
        if move_numbers and first % shape.sub == 0:
            n_steps = _move_number(
                shape, row, begin, first, arrays, gram, n, scales, sub, threshold, steps, n_steps, proposed
            )
        scale, offset = units[sub] * numbers[sub], offsets[sub]
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
            levels[at + lane] = proposed[ROWS + lane]
            n_steps = _take_step(row, begin, first + lane, proposed[lane], arrays, gram, n, steps, n_steps)
            pending = _ALL & ~((2 << lane) - 1)
    return n_steps - record


@step_of
def _add_steps(gradient, gram, n, row, segment, begin, columns, moves, at, n_steps):
    """Adds to 64 columns of a row's gradient what its steps in the panel that begins at `begin` are worth there."""
    place = row * n + segment
    a, b = load_half(gradient, place), load_half(gradient, place + ROWS)
    c, d = load_half(gradient, place + 2 * ROWS), load_half(gradient, place + 3 * ROWS)
    for i in range(at, at + n_steps):
        move, source = everywhere(moves, i), (begin + columns[i]) * n + segment
        a = fused(move, load_half(gram, source), a)
        b = fused(move, load_half(gram, source + ROWS), b)
        c = fused(move, load_half(gram, source + 2 * ROWS), c)
        d = fused(move, load_half(gram, source + 3 * ROWS), d)
    store(gradient, place, a)
    store(gradient, place + ROWS, b)
    store(gradient, place + 2 * ROWS, c)
    store(gradient, place + 3 * ROWS, d)


@step_of
def _catch_up(gradient, gram, n, n_rows, target, first, last, steps, counts):
    """Adds to the gradients in panel `target` what the last steps in the panels `first` to `last` are worth there."""
    columns, moves = steps
    for panel in range(first, last):
        for segment in range(target * PANEL, target * PANEL + PANEL, _SEGMENT):
            for row in range(n_rows):
                own = panel * n_rows + row
                if counts[own]:
                    _add_steps(
                        gradient, gram, n, row, segment, panel * PANEL, columns, moves, own * MOST_STEPS, counts[own]
                    )


@kernel_of(Path(__file__).parent)
def descend(shape, move_numbers, passes, values, levels, gradient, gram, diagonal, units, numbers, offsets, thresholds):
    """Passes over all columns of all rows, until there are no more steps.

    Args:
        shape: what `shape_of` gives.
        move_numbers: whether the integers of the scales move, too.
        passes: at most so many.
        values, levels, gradient: float32[rows * columns], flat, row after row; they move with the steps.
        gram, diagonal: H and its diagonal, float32, flat.
        units, numbers: float32[rows * sub-blocks]: a sub-block's scale is the product; the numbers may move.
        offsets: float32[rows * sub-blocks], real numbers.
        thresholds: float32[rows]: what a step must gain.
    """
    n, n_rows = diagonal.size, thresholds.size
    n_panels = n // PANEL
    counts, proposed = np.zeros(n_panels * n_rows, np.int64), np.empty(2 * ROWS, np.float32)
    steps = np.empty(counts.size * MOST_STEPS, np.uint8), np.empty(counts.size * MOST_STEPS, np.float32)
    for _ in range(passes):
        n_steps = 0
        for panel in range(n_panels):
            _catch_up(gradient, gram, n, n_rows, panel, 0, panel, steps, counts)
            _catch_up(gradient, gram, n, n_rows, panel, panel + 1, n_panels, steps, counts)
            for row in range(n_rows):
                own = panel * n_rows + row
                counts[own] = _descend_row(
                    shape, move_numbers, row, panel * PANEL, (values, levels, gradient), gram, diagonal,
                    (units, numbers), offsets, thresholds[row], steps, own * MOST_STEPS, proposed,
                )  # fmt: skip
                n_steps += counts[own]
        if n_steps == 0:
            break
    for panel in range(n_panels):
        _catch_up(gradient, gram, n, n_rows, panel, panel + 1, n_panels, steps, counts)
