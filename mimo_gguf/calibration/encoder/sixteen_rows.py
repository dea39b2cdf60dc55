"""Coordinate descent of sixteen rows in a strip of 64 columns, each row in a lane of its own.

With the gradient g = (v - w) H, column j would like to move by -g_j / H_jj. It takes the level next to that if the
error falls by more than a threshold. A step moves the gradient by the step times row j of H. Columns are taken in
their order, each after the steps of those before. Before the columns of a sub-block the integer of its scale may move
likewise; not of kinds with an offset, where that gains nothing.

The gradient lies row after row, because steps are rare and each row takes others. A strip of it is turned, and a column
looks at all sixteen rows at once. What they take is written down twice: as the column's sixteen moves, which the other
columns of the strip add to their gradients, and as steps of each row for everything else.
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from mimo_gguf.calibration.encoder.factors import STRIP
from mimo_gguf.quantization.kernels.lanes import (
    absolute,
    larger,
    load_half,
    round_to_even,
    select,
    smaller,
    splat_half,
    store,
)
from mimo_gguf.quantization.kernels.transposes import load_square
from mimo_gguf.quantization.search.kinds import CODEBOOK, PANEL
from mimo_gguf.quantization.search.scales import nearest_level
from mimo_gguf.quantization.search.vectors import ROWS, both, everywhere, fused, lanes_that_hold, lowest_bit, step_of

STRIPS: Final = PANEL // STRIP
MOST_STEPS: Final = 2 * PANEL  # of a row in a panel: each weight with its scale, and once alone
ROOM: Final = MOST_STEPS + ROWS  # from a row's steps to the next one's, which then lie in other lines of a cache
_ALL: Final = (1 << ROWS) - 1
_GAP: Final = float(np.diff(CODEBOOK).min())
_LARGEST: Final = float(np.abs(CODEBOOK).max())


class Encoded(NamedTuple):
    """What the descent moves, and the matrix H.

    `levels` and `chosen` lie as `encode_panel` gives them, `gradient` strip after strip, and in it row after row;
    `strips` and `diagonal` are those of H.
    """

    levels: Any
    chosen: Any
    gradient: Any
    strips: Any
    diagonal: Any


class Steps(NamedTuple):
    """Steps that rows have taken in a panel: the column and the move. The steps of row i begin at i * `ROOM`.

    `counts` is their number, `marks` the number that each row had when the strip's turn came.
    """

    columns: Any
    moves: Any
    counts: Any
    marks: Any


class Scratch(NamedTuple):
    """Room for sixteen rows in a strip.

    `slopes` holds gradients, column after column. `columns` and `moves` hold what has moved: a column, and the moves
    of sixteen rows.
    """

    slopes: Any
    columns: Any
    moves: Any
    directions: Any
    parts: Any


class Place(NamedTuple):
    """Where sixteen rows in a strip lie.

    `row` is the first in the chunk of `n_rows`, `first` the strip's first column in its panel. `column` is the panel's
    first one, `levels` where the rows' levels begin. `chosen` is where the panel begins in `chosen`, and `own` where
    its rows of H begin in the strip.
    """

    row: Any
    n_rows: Any
    first: Any
    column: Any
    levels: Any
    chosen: Any
    own: Any


@step_of
def add_steps(gradient, at, strips, source, columns, moves, first, last):
    """Adds to a strip of a row's gradient what the steps `first` to `last` are worth there.

    The part of H for the panel's column c lies from `source` + 64 * c on.
    """
    a, b = load_half(gradient, at), load_half(gradient, at + ROWS)
    c, d = load_half(gradient, at + 2 * ROWS), load_half(gradient, at + 3 * ROWS)
    for i in range(first, last):
        move, here = everywhere(moves, i), source + columns[i] * STRIP
        a = fused(move, load_half(strips, here), a)
        b = fused(move, load_half(strips, here + ROWS), b)
        c = fused(move, load_half(strips, here + 2 * ROWS), c)
        d = fused(move, load_half(strips, here + 3 * ROWS), d)
    store(gradient, at, a)
    store(gradient, at + ROWS, b)
    store(gradient, at + 2 * ROWS, c)
    store(gradient, at + 3 * ROWS, d)


@step_of
def _feed(x, at, n, strips, source, columns, moves, first, last):
    """Adds to n columns of `x` what the moves `first` to `last` are worth there.

    The part of H for the panel's column c lies from `source` + 64 * c on.
    """
    for own in range(0, n, 4):
        here = at + own * ROWS
        a, b = load_half(x, here), load_half(x, here + ROWS)
        c, d = load_half(x, here + 2 * ROWS), load_half(x, here + 3 * ROWS)
        for i in range(first, last):
            move, place = load_half(moves, i * ROWS), source + columns[i] * STRIP + own
            a = fused(move, everywhere(strips, place), a)
            b = fused(move, everywhere(strips, place + 1), b)
            c = fused(move, everywhere(strips, place + 2), c)
            d = fused(move, everywhere(strips, place + 3), d)
        store(x, here, a)
        store(x, here + ROWS, b)
        store(x, here + 2 * ROWS, c)
        store(x, here + 3 * ROWS, d)


@step_of
def _record(scratch, steps, row, column, move, bits, n_moves):
    """Writes down the moves of a column, for those of sixteen rows that have a bit; gives the new number of moves."""
    place = n_moves * ROWS
    scratch.columns[n_moves] = column
    store(scratch.moves, place, move)
    while bits:
        lane = lowest_bit(bits)
        at = (row + lane) * ROOM + steps.counts[row + lane]
        steps.columns[at] = column
        steps.moves[at] = scratch.moves[place + lane]
        steps.counts[row + lane] += 1
        bits &= bits - 1
    return n_moves + 1


# -- the integers of the scales --------------------------------------------------------------------------------------


@step_of
def _sum_of_sixteen(x):
    """The sum of the first sixteen columns of `x`, which it overwrites: halves, quarters, and so on."""
    for span in (8, 4, 2, 1):
        for i in range(span):
            store(x, i * ROWS, load_half(x, i * ROWS) + load_half(x, (i + span) * ROWS))
    return load_half(x, 0)


@step_of
def _add_products(shape, rows, scratch, place, column, from_slopes):
    """Adds the products of `directions` and H in four columns, times `directions`, to `parts`.

    The columns are those from `column` on, in the sub-block that the directions are of. If `from_slopes`, twice their
    gradients are added to the products.
    """
    directions, parts, own = scratch.directions, scratch.parts, column % shape.sub
    a = b = c = d = splat_half(0.0)
    if from_slopes:
        at = (column - place.first) * ROWS
        a, b = load_half(scratch.slopes, at), load_half(scratch.slopes, at + ROWS)
        c, d = load_half(scratch.slopes, at + 2 * ROWS), load_half(scratch.slopes, at + 3 * ROWS)
        a, b, c, d = a + a, b + b, c + c, d + d
    source = place.own + (column - own) * STRIP + column - place.first
    for i in range(shape.sub):
        direction = load_half(directions, i * ROWS)
        a = fused(direction, everywhere(rows.strips, source), a)
        b = fused(direction, everywhere(rows.strips, source + 1), b)
        c = fused(direction, everywhere(rows.strips, source + 2), c)
        d = fused(direction, everywhere(rows.strips, source + 3), d)
        source += STRIP
    to, at = own % ROWS * ROWS, own * ROWS
    store(parts, to, fused(a, load_half(directions, at), load_half(parts, to)))
    store(parts, to + ROWS, fused(b, load_half(directions, at + ROWS), load_half(parts, to + ROWS)))
    store(parts, to + 2 * ROWS, fused(c, load_half(directions, at + 2 * ROWS), load_half(parts, to + 2 * ROWS)))
    store(parts, to + 3 * ROWS, fused(d, load_half(directions, at + 3 * ROWS), load_half(parts, to + 3 * ROWS)))


@step_of
def _clear(parts):
    for i in range(ROWS):
        store(parts, i * ROWS, splat_half(0.0))


@step_of
def _better_numbers(shape, rows, scratch, place, first, at, d, number):
    """The integers of a sub-block's scale with the smallest error, if its levels stay."""
    directions, parts, slopes_at = scratch.directions, scratch.parts, (first - place.first) * ROWS
    _clear(parts)
    for i in range(shape.sub):
        direction, to = d * load_half(rows.levels, at + i * ROWS), i % ROWS * ROWS
        store(directions, i * ROWS, direction)
        store(parts, to, fused(direction, load_half(scratch.slopes, slopes_at + i * ROWS), load_half(parts, to)))
    slope = _sum_of_sixteen(parts)
    _clear(parts)
    for column in range(first, first + shape.sub, 4):
        _add_products(shape, rows, scratch, place, column, False)
    bend = _sum_of_sixteen(parts)
    wanted = round_to_even(number - slope / bend)
    wanted = smaller(larger(wanted, splat_half(shape.scale_low)), splat_half(shape.scale_high))
    return select(bend > splat_half(0.0), wanted, number)


@step_of
def _gain(shape, rows, scratch, place, first, at, scale, old):
    """What the rows gain, as negative numbers, if a sub-block's values move from a scale to another."""
    for i in range(shape.sub):
        level = load_half(rows.levels, at + i * ROWS)
        store(scratch.directions, i * ROWS, scale * level - old * level)
    gain = splat_half(0.0)
    for chunk in range(first, first + shape.sub, ROWS):
        _clear(scratch.parts)
        for column in range(chunk, chunk + ROWS, 4):
            _add_products(shape, rows, scratch, place, column, True)
        gain = gain + _sum_of_sixteen(scratch.parts)
    return gain


@step_of
def _move_numbers(shape, rows, steps, scratch, place, first, at, number_at, d, threshold, n_moves):
    """Moves the integers of the scale of the sub-block that begins at column `first` if the error falls by that."""
    number, zero = load_half(rows.chosen, number_at), splat_half(0.0)
    wanted = _better_numbers(shape, rows, scratch, place, first, at, d, number)
    other = both(absolute(wanted - number) > zero, absolute(d) > zero)
    if lanes_that_hold(other) == 0:
        return n_moves
    wins = both(other, _gain(shape, rows, scratch, place, first, at, d * wanted, d * number) < threshold)
    if lanes_that_hold(wins) == 0:
        return n_moves
    store(rows.chosen, number_at, select(wins, wanted, number))
    for i in range(shape.sub):
        step = select(wins, load_half(scratch.directions, i * ROWS), zero)
        bits = lanes_that_hold(absolute(step) > zero)
        if bits:
            n_moves = _record(scratch, steps, place.row, first + i, step, bits, n_moves)
    return n_moves


# -- the levels ------------------------------------------------------------------------------------------------------


@step_of
def _least_step(shape, scale, offset):
    """A little less than the distance of two neighbouring values, so that no rounding of a step is below it."""
    magnitude = absolute(scale)
    gap, largest = (_GAP, _LARGEST) if shape.codebook else (1.0, max(-shape.low, shape.high))
    rounding = splat_half(1e-6) * (magnitude * splat_half(largest) + absolute(offset))
    least = splat_half(0.999 * gap) * magnitude - rounding
    return select(magnitude > splat_half(0.0), least, splat_half(np.inf))


@step_of
def _move_levels(shape, rows, steps, scratch, place, first, at, scale, offset, threshold, n_moves):
    """Moves the levels of the sixteen columns from `first` on, each after the moves of those before.

    A step s changes the error by s (2 g + s H_jj), which is no gain if |s| H_jj is more than |2 g|: most columns need
    no division.
    """
    slopes, least = scratch.slopes, _least_step(shape, scale, offset)
    movable = least < splat_half(np.inf)
    if lanes_that_hold(movable) == 0:
        return n_moves
    for i in range(ROWS):
        slope = load_half(slopes, (first - place.first + i) * ROWS)
        curvature, reach = everywhere(rows.diagonal, place.column + first + i), absolute(slope)
        if lanes_that_hold(reach + reach < least * curvature) == _ALL:
            continue
        old = load_half(rows.levels, at + i * ROWS)
        value = scale * old - offset
        level = nearest_level(shape, (value - slope / curvature + offset) / scale)
        new = scale * level - offset
        step = new - value
        wins = both(step * (slope + slope + step * curvature) < threshold, movable)
        bits = lanes_that_hold(wins)
        if bits == 0:
            continue
        store(rows.levels, at + i * ROWS, select(wins, level, old))
        step = select(wins, step, splat_half(0.0))
        source = place.own + (first + i) * STRIP + first - place.first
        for later in range(i + 1, ROWS):
            here = (first - place.first + later) * ROWS
            store(slopes, here, fused(step, everywhere(rows.strips, source + later), load_half(slopes, here)))
        n_moves = _record(scratch, steps, place.row, first + i, step, bits, n_moves)
    return n_moves


@step_of
def _feed_strip(rows, scratch, place, first, n, begin, end):
    """Adds to the gradients of n columns, from `first` on, what the strip's moves `begin` to `end` are worth."""
    own = first - place.first
    _feed(scratch.slopes, own * ROWS, n, rows.strips, place.own + own, scratch.columns, scratch.moves, begin, end)


@step_of
def _descend_sub_block(shape, move_numbers, rows, steps, scratch, place, first, threshold, n_moves):
    """Descends in the sub-block that begins at column `first`, after `n_moves` in its strip; gives their new number."""
    block_at = place.chosen + first // shape.block * (2 + 2 * shape.subs) * place.n_rows
    number_at = block_at + (2 + 2 * (first % shape.block // shape.sub)) * place.n_rows
    at = place.levels + first * ROWS
    _feed_strip(rows, scratch, place, first, shape.sub, 0, n_moves)
    d, fed = load_half(rows.chosen, block_at), n_moves
    if move_numbers:
        n_moves = _move_numbers(shape, rows, steps, scratch, place, first, at, number_at, d, threshold, n_moves)
        _feed_strip(rows, scratch, place, first, shape.sub, fed, n_moves)
        fed = n_moves
    scale = d * load_half(rows.chosen, number_at)
    offset = load_half(rows.chosen, block_at + place.n_rows) * load_half(rows.chosen, number_at + place.n_rows)
    for i in range(0, shape.sub, ROWS):
        if i > 0:
            _feed_strip(rows, scratch, place, first + i, ROWS, fed, n_moves)
        n_moves = _move_levels(
            shape, rows, steps, scratch, place, first + i, at + i * ROWS, scale, offset, threshold, n_moves
        )
    return n_moves


@step_of
def descend_strip(shape, move_numbers, rows, steps, scratch, place, gradient_at, threshold):
    """Takes the steps of sixteen rows in a strip. The gradients, from `gradient_at` on, know only those before."""
    for i in range(ROWS):
        row = place.row + i
        steps.marks[place.first // STRIP * place.n_rows + row] = steps.counts[row]
        if steps.counts[row] > 0:
            add_steps(
                rows.gradient, gradient_at + i * STRIP, rows.strips, place.own, steps.columns, steps.moves,
                row * ROOM, row * ROOM + steps.counts[row],
            )  # fmt: skip
    for i in range(0, STRIP, ROWS):
        at = gradient_at + i
        load_square(rows.gradient, at, at + ROWS // 2 * STRIP, STRIP, scratch.slopes, i * ROWS, ROWS)
    n_moves = 0
    for first in range(place.first, place.first + STRIP, shape.sub):
        n_moves = _descend_sub_block(
            shape, move_numbers, rows, steps, scratch, place, first, splat_half(0.0) - threshold, n_moves
        )
