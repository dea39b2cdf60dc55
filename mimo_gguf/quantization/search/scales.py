"""The search for scales: which `d`, which integers, so that a block's weighted squared error is small.

All of it works on a tile: sixteen rows of one panel, column c of row r at `x[c * ROWS + r]`. `weights` holds the
importance of each column, the same for all rows.

A sub-block's real scale (and offset) is fitted for each of a table of trial steps: take the levels, then move scale
and offset to the least squares of those levels. The residuals of the levels are summed rather than the values, so
that nothing cancels. Then `d` (and `dmin`) is tried at a few divisors of the largest scale; each time every sub-block
takes the integers with the smallest error. The best `d` and `dmin` move to the joint least squares of all levels.
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
from mimo_gguf.quantization.search.kinds import CODEBOOK, Kind
from mimo_gguf.quantization.search.vectors import (
    ROWS,
    as_half,
    both,
    everywhere,
    floor,
    fused,
    one_of_eight,
    one_of_four,
    quotient,
    step_of,
)

Numbers = NDArray[np.float32]


class Shape(NamedTuple):
    """A kind as the kernels read it. The trials lie in one table: steps, divisors of the scale, then of the offset."""

    block: int
    sub: int
    subs: int
    low: float
    high: float
    scale_low: float
    scale_high: float
    offset_high: float
    codebook: bool
    n_steps: int
    n_divisors: int
    n_offset_divisors: int


def shape_of(kind: Kind, n_steps: int) -> tuple[Shape, Numbers]:
    """The numbers of a kind, and its table of trials; `n_steps` of them for the scale of a sub-block."""
    if kind.high - kind.low > _MANY_LEVELS:
        n_steps = max(n_steps, MANY_STEPS)
    steps, (divisors, offset_divisors) = _steps(kind, n_steps), _divisors(kind)
    shape = Shape(
        kind.block,
        kind.sub,
        kind.block // kind.sub,
        float(kind.low),
        float(kind.high),
        float(kind.scale_low),
        float(kind.scale_high),
        float(kind.offset_high),
        kind.codebook,
        len(steps),
        len(divisors),
        len(offset_divisors),
    )
    return shape, np.array([*steps, *divisors, *offset_divisors], np.float32)


MANY_STEPS: Final = 19
FEW_STEPS: Final = 10
_MANY_LEVELS: Final = 32  # more than these need many steps, whatever follows the search
REFINEMENTS: Final = 2  # of d and dmin, by joint least squares


def _steps(kind: Kind, n_steps: int) -> list[float]:
    """By what the range (or the value of largest magnitude) of a sub-block is divided in turn, to give its scale."""
    part = [k / (n_steps - 1) for k in range(n_steps)]
    if kind.offset_high:
        below, width = (1.17, 2.6) if kind.high > 20 else (0.9, 2.2)
        return [kind.high - below + width * t for t in part]
    if kind.codebook:
        magnitudes = [118 + 18 * t for t in part]
        return [-m for m in magnitudes] + [m * 113 / 127 for m in magnitudes]
    magnitudes = [-kind.low * (0.80 + 0.34 * t) for t in part]
    return [-m for m in magnitudes] + magnitudes


def _divisors(kind: Kind) -> tuple[list[float], list[float]]:
    """By what the largest scale and the largest offset are divided in turn, to give `d` and `dmin`."""
    top, bottom = float(kind.scale_high), float(kind.scale_low)
    if kind.offset_high:
        return [top, top - 0.7, top - 1.4], [kind.offset_high, kind.offset_high - 0.6]
    return ([1.0], [1.0]) if top == bottom else ([bottom, top, bottom + 0.5], [1.0])


# -- levels ----------------------------------------------------------------------------------------------------------

_MIDDLES: Final = tuple(float(a + b) / 2 for a, b in pairwise(CODEBOOK))
_MIDDLE, _LOWER_MIDDLE, _UPPER_MIDDLE = _MIDDLES[7], _MIDDLES[3], _MIDDLES[11]
_third_middle, _last_middle = one_of_four(*_MIDDLES[1::4]), one_of_eight(*_MIDDLES[::2])
_left, _right = one_of_eight(*CODEBOOK[::2].tolist()), one_of_eight(*CODEBOOK[1::2].tolist())


@step_of
def _nearest_in_codebook(y):
    """The number of the codebook nearest to y, by halving: three choices of a middle, then left or right of it."""
    first = y > splat_half(_MIDDLE)
    second = y > select(first, splat_half(_UPPER_MIDDLE), splat_half(_LOWER_MIDDLE))
    third = y > _third_middle(first, second)
    return select(y > _last_middle(first, second, third), _right(first, second, third), _left(first, second, third))


@step_of
def nearest_level(shape, y):
    """The level nearest to y; of a codebook, its number."""
    if shape.codebook:
        return _nearest_in_codebook(y)
    return smaller(larger(round_to_even(y), splat_half(shape.low)), splat_half(shape.high))


# -- one sub-block ---------------------------------------------------------------------------------------------------


@step_of
def _fit_scale(shape, trials, x, weights, first):
    """The best real scale of the sub-block that begins at column `first`."""
    extreme = largest = splat_half(0.0)
    for column in range(first, first + shape.sub):
        value = load_half(x, column * ROWS)
        beyond = absolute(value) > largest
        extreme = select(beyond, value, extreme)
        largest = larger(absolute(value), largest)
    scale = extreme / everywhere(trials, 0)
    best = splat_half(np.inf)
    for trial in range(shape.n_steps):
        divisor = everywhere(trials, trial)
        step, inverse = extreme / divisor, divisor / extreme
        sum_qq = sum_qr = sum_rr = splat_half(0.0)
        for column in range(first, first + shape.sub):
            value, weight = load_half(x, column * ROWS), everywhere(weights, column)
            level = nearest_level(shape, value * inverse)
            residual = value - step * level
            weighted = weight * level
            sum_qq = fused(weighted, level, sum_qq)
            sum_qr = fused(weighted, residual, sum_qr)
            sum_rr = fused(weight * residual, residual, sum_rr)
        change = quotient(sum_qr, sum_qq)
        error = sum_rr - change * sum_qr
        better = error < best
        best = select(better, error, best)
        scale = select(better, step + change, scale)
    return scale


@step_of
def _fit_scale_and_offset(shape, trials, x, weights, first):
    """The best real scale and offset (0 at least) of the sub-block that begins at column `first`."""
    zero = low = high = splat_half(0.0)
    sum_w = zero
    for column in range(first, first + shape.sub):
        value = load_half(x, column * ROWS)
        low, high = smaller(value, low), larger(value, high)
        sum_w = sum_w + everywhere(weights, column)
    span = high - low
    scale, offset, best = zero, zero, splat_half(np.inf)
    for trial in range(shape.n_steps):
        divisor = everywhere(trials, trial)
        step, inverse = span / divisor, divisor / span
        sum_q = sum_qq = sum_r = sum_qr = sum_rr = zero
        for column in range(first, first + shape.sub):
            value, weight = load_half(x, column * ROWS) - low, everywhere(weights, column)
            level = smaller(round_to_even(value * inverse), splat_half(shape.high))
            residual = value - step * level
            weighted = weight * level
            sum_q = sum_q + weighted
            sum_qq = fused(weighted, level, sum_qq)
            weighted = weight * residual
            sum_r = sum_r + weighted
            sum_qr = fused(weighted, level, sum_qr)
            sum_rr = fused(weighted, residual, sum_rr)
        change, shift, error = _least_squares(sum_w, sum_q, sum_qq, sum_r, sum_qr, sum_rr, low)
        better = both(error < best, step + change > zero)
        best = select(better, error, best)
        scale = select(better, step + change, scale)
        offset = select(better, larger(shift - low, zero), offset)
    return scale, offset


@step_of
def _least_squares(sum_w, sum_q, sum_qq, sum_r, sum_qr, sum_rr, low):
    """How far scale and offset move to the least squares of the levels, and the error then; the offset stays >= 0."""
    zero = splat_half(0.0)
    determinant = sum_w * sum_qq - sum_q * sum_q
    sound = determinant > splat_half(1e-6) * (sum_w * sum_qq)
    change = select(sound, quotient(sum_w * sum_qr - sum_q * sum_r, determinant), zero)
    shift = select(sound, quotient(sum_q * sum_qr - sum_qq * sum_r, determinant), zero)
    error = sum_rr - change * sum_qr + shift * sum_r
    # without an offset, if the best one is below 0: the residuals are then larger by `low`
    without = shift < low
    moved = sum_qr + low * sum_q
    alone = quotient(moved, sum_qq)
    error_alone = sum_rr + (low + low) * sum_r + low * low * sum_w - alone * moved
    change, error = select(without, alone, change), select(without, error_alone, error)
    return change, select(without, low, shift), error


@step_of
def fit(shape, trials, x, weights, first):
    """The best real scale and offset of the sub-block that begins at column `first`."""
    if shape.offset_high > 0:
        return _fit_scale_and_offset(shape, trials, x, weights, first)
    return _fit_scale(shape, trials, x, weights, first), splat_half(0.0)


@step_of
def _error_of(shape, x, weights, first, scale, offset):
    """The weighted squared error of a sub-block under a scale and an offset."""
    inverse = quotient(splat_half(1.0), scale)
    error = splat_half(0.0)
    for column in range(first, first + shape.sub):
        value = load_half(x, column * ROWS) + offset
        residual = scale * nearest_level(shape, value * inverse) - value
        error = fused(everywhere(weights, column) * residual, residual, error)
    return error


@step_of
def bounded_scale(shape, number):
    return smaller(larger(number, splat_half(shape.scale_low)), splat_half(shape.scale_high))


@step_of
def bounded_offset(shape, number):
    return smaller(larger(number, splat_half(0.0)), splat_half(shape.offset_high))


@step_of
def _choose_integers(shape, x, weights, first, d, dmin, scale, offset):
    """The integers next to a real scale and offset that have the smallest error, and that error."""
    one = splat_half(1.0)
    below, below_offset = floor(quotient(scale, d)), floor(quotient(offset, dmin))
    best, best_scale, best_offset = splat_half(np.inf), bounded_scale(shape, below), bounded_offset(shape, below_offset)
    for up in range(2 if shape.scale_high > shape.scale_low else 1):
        number = bounded_scale(shape, below if up == 0 else below + one)
        for further in range(2 if shape.offset_high > 0 else 1):
            other = bounded_offset(shape, below_offset if further == 0 else below_offset + one)
            error = _error_of(shape, x, weights, first, d * number, dmin * other)
            better = error < best
            best = select(better, error, best)
            best_scale = select(better, number, best_scale)
            best_offset = select(better, other, best_offset)
    return best, best_scale, best_offset


# -- one block -------------------------------------------------------------------------------------------------------


@step_of
def _choose_all_integers(shape, x, weights, first, d, dmin, fits, trial):
    """Chooses the integers of every sub-block into `trial`; gives the sum of the errors."""
    total = splat_half(0.0)
    for sub in range(shape.subs):
        scale, offset = load_half(fits, 2 * sub * ROWS), load_half(fits, (2 * sub + 1) * ROWS)
        error, number, other = _choose_integers(shape, x, weights, first + sub * shape.sub, d, dmin, scale, offset)
        total = total + error
        store(trial, 2 * sub * ROWS, number)
        store(trial, (2 * sub + 1) * ROWS, other)
    return total


@step_of
def _joint_least_squares(shape, x, weights, first, chosen, at):
    """`d` and `dmin` that fit all levels of the block best, as f16 values; unchanged if there is no such fit."""
    zero = splat_half(0.0)
    d, dmin = load_half(chosen, at), load_half(chosen, at + ROWS)
    aa = ab = bb = ax = bx = zero
    for sub in range(shape.subs):
        number = load_half(chosen, at + (2 + 2 * sub) * ROWS)
        other = load_half(chosen, at + (3 + 2 * sub) * ROWS)
        scale, offset = d * number, dmin * other
        inverse = quotient(splat_half(1.0), scale)
        sum_q = sum_qq = sum_x = sum_qx = sum_w = zero
        begin = first + sub * shape.sub
        for column in range(begin, begin + shape.sub):
            value, weight = load_half(x, column * ROWS), everywhere(weights, column)
            level = nearest_level(shape, (value + offset) * inverse)
            weighted = weight * level
            sum_w = sum_w + weight
            sum_q = sum_q + weighted
            sum_qq = fused(weighted, level, sum_qq)
            sum_x = fused(weight, value, sum_x)
            sum_qx = fused(weighted, value, sum_qx)
        aa = fused(number * number, sum_qq, aa)
        ab = fused(number * other, sum_q, ab)
        bb = fused(other * other, sum_w, bb)
        ax = fused(number, sum_qx, ax)
        bx = fused(other, sum_x, bx)
    determinant = aa * bb - ab * ab
    sound = determinant > splat_half(1e-6) * (aa * bb)
    new_d = select(sound, quotient(bb * ax - ab * bx, determinant), quotient(ax, aa))
    new_dmin = select(sound, quotient(ab * ax - aa * bx, determinant), zero)
    if shape.offset_high > 0:
        sound = both(sound, both(new_d > zero, new_dmin + splat_half(1e-30) > zero))
        return select(sound, as_half(new_d), d), select(sound, as_half(new_dmin), dmin)
    return select(aa > zero, as_half(new_d), d), dmin


@step_of
def _keep_better(shape, error, best, d, dmin, trial, chosen, at):
    """Copies the lanes whose error is smaller than the best so far to `chosen`: d, dmin, then the integers."""
    better = error < best
    store(chosen, at, select(better, d, load_half(chosen, at)))
    store(chosen, at + ROWS, select(better, dmin, load_half(chosen, at + ROWS)))
    for i in range(0, 2 * shape.subs * ROWS, ROWS):
        to = at + 2 * ROWS + i
        store(chosen, to, select(better, load_half(trial, i), load_half(chosen, to)))
    return select(better, error, best)


@step_of
def _largest(shape, fits):
    """The scale of largest magnitude and the largest offset of a block's sub-blocks."""
    extreme = largest = largest_offset = splat_half(0.0)
    for sub in range(shape.subs):
        scale = load_half(fits, 2 * sub * ROWS)
        extreme = select(absolute(scale) > largest, scale, extreme)
        largest = larger(absolute(scale), largest)
        largest_offset = larger(load_half(fits, (2 * sub + 1) * ROWS), largest_offset)
    return extreme, largest_offset


@step_of
def choose_scales(shape, trials, x, weights, first, fits, trial, chosen, at):
    """Searches the scales of the block that begins at column `first`.

    `chosen` receives from `at` on d, dmin, and for each sub-block the integers of its scale and its offset; each takes
    one number for every lane. `fits`, `trial`: float32[32 * ROWS], scratch.
    """
    for sub in range(shape.subs):
        scale, offset = fit(shape, trials, x, weights, first + sub * shape.sub)
        store(fits, 2 * sub * ROWS, scale)
        store(fits, (2 * sub + 1) * ROWS, offset)
    for i in range(0, (2 + 2 * shape.subs) * ROWS, ROWS):
        store(chosen, at + i, splat_half(0.0))
    extreme, largest_offset = _largest(shape, fits)
    best = splat_half(np.inf)
    n_trials = shape.n_divisors * shape.n_offset_divisors
    for number in range(n_trials + REFINEMENTS):
        if number < n_trials:
            divisor = shape.n_steps + number % shape.n_divisors
            offset_divisor = shape.n_steps + shape.n_divisors + number // shape.n_divisors
            d = as_half(extreme / everywhere(trials, divisor))
            dmin = as_half(largest_offset / everywhere(trials, offset_divisor))
        else:
            d, dmin = _joint_least_squares(shape, x, weights, first, chosen, at)
        error = _choose_all_integers(shape, x, weights, first, d, dmin, fits, trial)
        best = _keep_better(shape, error, best, d, dmin, trial, chosen, at)
