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

from mimo_gguf.quantization.kernels.lanes import absolute, load_half, splat_half, store
from mimo_gguf.quantization.search.jit import kernel_of
from mimo_gguf.quantization.search.kinds import CODEBOOK, PANEL
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
_MANY_STEPS: Final = 4 * PANEL  # in a panel, that make up for copying what H has for its 256 columns
_ALL: Final = (1 << ROWS) - 1
_GAP: Final = float(np.diff(CODEBOOK).min())
_LARGEST: Final = float(np.abs(CODEBOOK).max())


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
def _candidates(gradient, at, diagonal, column, least):
    """The columns of sixteen that may gain by a step of at least `least`, as bits; the others cannot.

    A step s changes the error by s (2 g + s H_jj), which is no gain if |s| H_jj is more than |2 g|.
    """
    slope = absolute(load_half(gradient, at))
    cannot = slope + slope < splat_half(least) * load_half(diagonal, column)
    return _ALL & ~lanes_that_hold(cannot)


@step_of
def _least_step(shape, scale, offset):
    """A little less than the distance of two neighbouring values, so that no rounding of a step is below it."""
    magnitude = abs(scale)
    gap, largest = (_GAP, _LARGEST) if shape.codebook else (1.0, max(-shape.low, shape.high))
    return np.float32(0.999 * gap * magnitude - 1e-6 * (magnitude * largest + abs(offset)))


@step_of
def _add_steps(gradient, at, matrix, source, stride, steps, first, last):
    """Adds to 64 columns of a row's gradient what the steps `first` to `last` are worth there.

    Column c's part of H lies from `source` + c * `stride` on in `matrix`.
    """
    columns, moves = steps
    a, b = load_half(gradient, at), load_half(gradient, at + ROWS)
    c, d = load_half(gradient, at + 2 * ROWS), load_half(gradient, at + 3 * ROWS)
    for i in range(first, last):
        move, here = everywhere(moves, i), source + columns[i] * stride
        a = fused(move, load_half(matrix, here), a)
        b = fused(move, load_half(matrix, here + ROWS), b)
        c = fused(move, load_half(matrix, here + 2 * ROWS), c)
        d = fused(move, load_half(matrix, here + 3 * ROWS), d)
    store(gradient, at, a)
    store(gradient, at + ROWS, b)
    store(gradient, at + 2 * ROWS, c)
    store(gradient, at + 3 * ROWS, d)


@step_of
def _record(at, value, column, values, steps, n_steps):
    """Moves one value, and records the step unless it is 0."""
    columns, moves = steps
    step = value - values[at]
    values[at] = value
    columns[n_steps], moves[n_steps] = column, step
    return n_steps + (step != 0)


@step_of
def _bend(shape, levels, at, unit, tile, corner, direction):
    """How the error of a sub-block's row bends along the integer of its scale, if the levels stay."""
    for i in range(0, shape.sub, ROWS):
        store(direction, i, splat_half(unit) * load_half(levels, at + i))
    curvature = splat_half(0.0)
    for i in range(0, shape.sub, ROWS):
        bent = splat_half(0.0)
        for j in range(shape.sub):
            bent = fused(everywhere(direction, j), load_half(tile, corner + j * PANEL + i), bent)
        curvature = fused(bent, load_half(direction, i), curvature)
    return sum_of_lanes(curvature)


@step_of
def _better_number(shape, levels, gradient, at, unit, number, bend):
    """The integer of a sub-block's scale with the smallest error, if its levels stay."""
    slope = splat_half(0.0)
    for i in range(0, shape.sub, ROWS):
        slope = fused(splat_half(unit) * load_half(levels, at + i), load_half(gradient, at + i), slope)
    if not bend > 0:
        return number
    wanted = np.rint(number - sum_of_lanes(slope) / bend)
    return np.float32(min(max(wanted, shape.scale_low), shape.scale_high))


@step_of
def _gain(shape, gradient, at, tile, corner, direction):
    """What a sub-block's row gains, as a negative number, if its values move by `direction`."""
    gain = np.float32(0.0)
    for i in range(0, shape.sub, ROWS):
        bent = load_half(gradient, at + i)
        bent = bent + bent
        for j in range(shape.sub):
            bent = fused(everywhere(direction, j), load_half(tile, corner + j * PANEL + i), bent)
        gain += sum_of_lanes(bent * load_half(direction, i))
    return gain


@step_of
def _move_number(shape, at, column, arrays, tile, scales, sub, threshold, steps, n_steps, direction):
    """Moves the integer of the scale of the sub-block at `column` of the panel if the error falls by that."""
    values, levels, gradient = arrays
    units, numbers, bends = scales
    corner = column * PANEL + column
    if bends[sub] == np.inf:
        bends[sub] = _bend(shape, levels, at, units[sub], tile, corner, direction)
    number = _better_number(shape, levels, gradient, at, units[sub], numbers[sub], bends[sub])
    if number - numbers[sub] == 0:
        return n_steps
    scale = units[sub] * number
    for i in range(shape.sub):
        direction[i] = scale * levels[at + i] - values[at + i]
    if _gain(shape, gradient, at, tile, corner, direction) >= -threshold:
        return n_steps
    numbers[sub] = number
    taken = n_steps
    for i in range(shape.sub):
        taken = _record(at + i, scale * levels[at + i], column + i, values, steps, taken)
    segment = column // _SEGMENT * _SEGMENT
    _add_steps(gradient, at - column + segment, tile, segment, PANEL, steps, n_steps, taken)
    return taken


@step_of
def _descend_sixteen(shape, at, column, arrays, tile, diagonal, scale, offset, threshold, steps, n_steps, proposed):
    """Takes the steps of the sixteen columns from `column` of the panel on, each after those before."""
    values, levels, gradient = arrays
    least, pending, segment = _least_step(shape, scale, offset), _ALL, column // _SEGMENT * _SEGMENT
    while pending:
        pending &= _candidates(gradient, at, diagonal, column, least)
        if pending:
            pending &= _proposals(
                shape, values, levels, gradient, at, diagonal, column, scale, offset, threshold, proposed
            )
        if not pending:
            break
        lane = lowest_bit(pending)
        levels[at + lane] = proposed[ROWS + lane]
        taken = _record(at + lane, proposed[lane], column + lane, values, steps, n_steps)
        _add_steps(gradient, at - column + segment, tile, segment, PANEL, steps, n_steps, taken)
        n_steps = taken
        pending = _ALL & ~((2 << lane) - 1)
    return n_steps


@step_of
def _descend_row(
    shape, move_numbers, at, sub, arrays, tile, diagonal, scales, offsets, threshold, steps, begin, scratch
):
    """Takes the steps of a panel's row, the first column of which lies at `at`, its first sub-block's scale at `sub`.

    They are recorded from the place `begin` on; gives the place after them. The gradient of 64 columns catches up
    with the steps before them when it is their turn, and with those after them in the end.
    """
    units, numbers, bends = scales
    ends, proposed = scratch
    n_steps = begin
    for segment in range(0, PANEL, _SEGMENT):
        if n_steps > begin:
            _add_steps(arrays[2], at + segment, tile, segment, PANEL, steps, begin, n_steps)
        for column in range(segment, segment + _SEGMENT, ROWS):
            own = sub + column // shape.sub
            if units[own] == 0:
                continue
            if move_numbers and column % shape.sub == 0:
                n_steps = _move_number(
                    shape, at + column, column, arrays, tile, scales, own, threshold, steps, n_steps, proposed
                )
            scale = units[own] * numbers[own]
            if scale == 0:
                continue
            taken = _descend_sixteen(
                shape, at + column, column, arrays, tile, diagonal, scale, offsets[own], threshold, steps, n_steps,
                proposed,
            )  # fmt: skip
            if taken > n_steps:
                bends[own] = np.inf
            n_steps = taken
        ends[segment // _SEGMENT] = n_steps
    for i in range(PANEL // _SEGMENT - 1):
        if n_steps > ends[i]:
            _add_steps(arrays[2], at + i * _SEGMENT, tile, i * _SEGMENT, PANEL, steps, ends[i], n_steps)
    return n_steps


@step_of
def _copy(matrix, source, stride, n_columns, copy):
    """Copies 256 rows of `n_columns` to a place of their own: from the matrix they displace each other in caches."""
    for row in range(PANEL):
        for i in range(0, n_columns, ROWS):
            store(copy, row * n_columns + i, load_half(matrix, source + row * stride + i))


@step_of
def _add_each(gradient, segment, n, n_rows, matrix, source, stride, steps, begins, ends, own):
    """Adds to the same 64 columns of each row's gradient what the row's steps are worth there."""
    for row in range(n_rows):
        begin, end = begins[own + row], ends[own + row]
        if end > begin:
            _add_steps(gradient, row * n + segment, matrix, source, stride, steps, begin, end)


@step_of
def _catch_up(gradient, gram, n, n_rows, target, first, last, steps, begins, ends, strip):
    """Adds to the gradients in panel `target` what the last steps in the panels `first` to `last` are worth there."""
    for panel in range(first, last):
        own = panel * n_rows
        n_steps = ends[own + n_rows - 1] - begins[own]
        for segment in range(target * PANEL, target * PANEL + PANEL, _SEGMENT):
            source = panel * PANEL * n + segment
            if n_steps > _MANY_STEPS:
                _copy(gram, source, n, _SEGMENT, strip)
                _add_each(gradient, segment, n, n_rows, strip, 0, _SEGMENT, steps, begins, ends, own)
            elif n_steps > 0:
                _add_each(gradient, segment, n, n_rows, gram, source, n, steps, begins, ends, own)


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
    n_panels, n_subs = n // PANEL, PANEL // shape.sub
    begins, ends = np.zeros(n_panels * n_rows, np.int64), np.zeros(n_panels * n_rows, np.int64)
    room = n_rows * MOST_STEPS
    steps = np.empty(n_panels * room + 1, np.uint8), np.empty(n_panels * room + 1, np.float32)
    tile, strip = np.empty(PANEL * PANEL, np.float32), np.empty(PANEL * _SEGMENT, np.float32)
    scratch = np.empty(PANEL // _SEGMENT, np.int64), np.empty(2 * ROWS, np.float32)
    scales = units, numbers, np.full(units.size, np.inf, np.float32)
    for _ in range(passes):
        n_steps = 0
        for panel in range(n_panels):
            _catch_up(gradient, gram, n, n_rows, panel, 0, panel, steps, begins, ends, strip)
            _catch_up(gradient, gram, n, n_rows, panel, panel + 1, n_panels, steps, begins, ends, strip)
            _copy(gram, panel * PANEL * n + panel * PANEL, n, PANEL, tile)
            end = panel * room
            for row in range(n_rows):
                begins[panel * n_rows + row] = end
                end = _descend_row(
                    shape, move_numbers, row * n + panel * PANEL, (row * n_panels + panel) * n_subs,
                    (values, levels, gradient), tile, diagonal[panel * PANEL : panel * PANEL + PANEL], scales, offsets,
                    thresholds[row], steps, end, scratch,
                )  # fmt: skip
                ends[panel * n_rows + row] = end
            n_steps += end - panel * room
        if n_steps == 0:
            break
    for panel in range(n_panels):
        _catch_up(gradient, gram, n, n_rows, panel, panel + 1, n_panels, steps, begins, ends, strip)
