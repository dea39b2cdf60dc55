"""Coordinate descent: after the feedback, levels and scales move while that lowers the output error of their row.

Steps are rare, one column in ten in the first pass and fewer later. So they move the gradients one by one; a matrix
product for each pass would cost much more. Panel after panel, all rows together, and in it strip after strip of 64
columns, because a strip's part of H for a panel lies in the second-level cache, and so do its gradients. A strip's
gradients catch up with the steps that were taken elsewhere when it is the strip's turn.
"""

# numba gives its functions no types
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code=misc

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from mimo_gguf.calibration.encoder.factors import STRIP
from mimo_gguf.calibration.encoder.sixteen_rows import (
    MOST_STEPS,
    ROOM,
    STRIPS,
    Encoded,
    Place,
    Scratch,
    Steps,
    add_steps,
    descend_strip,
)
from mimo_gguf.quantization.kernels.lanes import LANES, load, load_half, splat_half, store, truncated
from mimo_gguf.quantization.kernels.transposes import load_square
from mimo_gguf.quantization.search.jit import kernel_of
from mimo_gguf.quantization.search.kinds import PANEL
from mimo_gguf.quantization.search.vectors import ROWS, fused, prefetch, step_of, sum_of_lanes

_LINE: Final = 16  # numbers of a cache line


@step_of
def _catch_up(rows, n_rows, n_own, strip, target, taken):
    """Adds to the gradients in a strip of panel `target` what the last steps in all other panels are worth there.

    Meanwhile it asks for the strip's rows of the panel that is next; in the end for the target's own, and those that
    the next strip begins with.
    """
    columns, moves, begins, ends = taken
    at, part = strip * n_rows * STRIP, PANEL * STRIP
    n_panels = rows.diagonal.size // PANEL
    for number in range(n_panels - 1):
        panel = number + (number >= target)
        following = target if number == n_panels - 2 else number + 1 + (number + 1 >= target)
        source, ahead = (strip * n_panels + panel) * part, (strip * n_panels + following) * part
        for row in range(n_own):
            _ask_for(rows.strips, ahead + row * STRIP)
            if following == target:
                _ask_for(rows.strips, (strip + 1) * n_panels * part + row * STRIP)
            begin, end = begins[panel * n_rows + row], ends[panel * n_rows + row]
            if end > begin:
                add_steps(rows.gradient, at + row * STRIP, rows.strips, source, columns, moves, begin, end)


@step_of
def _ask_for(strips, at):
    for line in range(0, STRIP, _LINE):
        prefetch(strips, at + line)


@step_of
def _add_later(rows, steps, n_rows, n_own, strip, own, at):
    """Adds to the gradients in a strip what the steps in its panel that came after its turn are worth there."""
    for row in range(n_own):
        mark, count = steps.marks[strip % STRIPS * n_rows + row], steps.counts[row]
        if count > mark:
            add_steps(
                rows.gradient, at + row * STRIP, rows.strips, own, steps.columns, steps.moves,
                row * ROOM + mark, row * ROOM + count,
            )  # fmt: skip


@step_of
def _keep_steps(steps, n_rows, n_own, panel, taken):
    """Keeps the steps in a panel for the other panels, one row's after the other's; gives their number."""
    columns, moves, begins, ends = taken
    begin = end = panel * n_rows * MOST_STEPS
    for row in range(n_own):
        begins[panel * n_rows + row] = end
        for i in range(row * ROOM, row * ROOM + steps.counts[row]):
            columns[end], moves[end] = steps.columns[i], steps.moves[i]
            end += 1
        ends[panel * n_rows + row] = end
        steps.counts[row] = 0
    return end - begin


@step_of
def _descend_panel(shape, move_numbers, is_last, rows, n_rows, n_own, panel, thresholds, taken, steps, scratch):
    """Takes the steps of all rows in a panel; gives their number."""
    n = rows.diagonal.size
    at, chosen_at = panel * n_rows * PANEL, panel * (rows.chosen.size // (n // PANEL))
    for strip in range(panel * STRIPS, panel * STRIPS + STRIPS):
        _catch_up(rows, n_rows, n_own, strip, panel, taken)
        first, own = strip % STRIPS * STRIP, (strip * n + panel * PANEL) * STRIP
        for row in range(0, n_own, ROWS):
            place = Place(row, n_rows, first, panel * PANEL, at + row * PANEL, chosen_at + row, own)
            gradient_at = (strip * n_rows + row) * STRIP
            descend_strip(shape, move_numbers, rows, steps, scratch, place, gradient_at, load_half(thresholds, row))
    if not is_last:
        for strip in range(panel * STRIPS, panel * STRIPS + STRIPS):
            own = (strip * n + panel * PANEL) * STRIP
            _add_later(rows, steps, n_rows, n_own, strip, own, strip * n_rows * STRIP)
    return _keep_steps(steps, n_rows, n_own, panel, taken)


@kernel_of(Path(__file__).parent)
def descend(shape, move_numbers, passes, n_wanted, levels, gradient, strips, diagonal, chosen, thresholds):
    """Passes over all columns of the first rows, until there are no more steps. The gradients lack the last ones.

    Args:
        shape: what `shape_of` gives.
        move_numbers: whether the integers of the scales move, too.
        passes: at most so many.
        n_wanted: the rows, from the first.
        levels: what `encode_panel` gives; they move.
        gradient: float32[strips * rows * 64], a strip's 64 columns of all rows after another's.
        strips, diagonal: H, as in `Factors`, and its diagonal, float32, flat.
        chosen: what `encode_panel` gives for all panels; the integers of the scales may move.
        thresholds: float32[rows]: what a step must gain.
    """
    n_rows, n_panels = thresholds.size, diagonal.size // PANEL
    n_own = (n_wanted + ROWS - 1) // ROWS * ROWS
    rows = Encoded(levels, chosen, gradient, strips, diagonal)
    begins, ends = np.zeros(n_panels * n_rows, np.int64), np.zeros(n_panels * n_rows, np.int64)
    room = n_panels * n_rows * MOST_STEPS
    taken = np.empty(room, np.uint8), np.empty(room, np.float32), begins, ends
    steps = Steps(
        np.empty(n_rows * ROOM, np.uint8),
        np.empty(n_rows * ROOM, np.float32),
        np.zeros(n_rows, np.int64),
        np.zeros(STRIPS * n_rows, np.int64),
    )
    scratch = Scratch(
        np.empty(STRIP * ROWS, np.float32),
        np.empty(2 * STRIP, np.int64),
        np.empty(2 * STRIP * ROWS, np.float32),
        np.empty(PANEL * ROWS, np.float32),
        np.empty(ROWS * ROWS, np.float32),
    )
    for number in range(passes):
        is_last = number == passes - 1
        n_steps = 0
        for panel in range(n_panels):
            n_steps += _descend_panel(
                shape, move_numbers, is_last, rows, n_rows, n_own, panel, thresholds, taken, steps, scratch
            )
        if n_steps == 0:
            break


@kernel_of(Path(__file__).parent)
def add_product(is_first, product, n_rows, gradient):
    """Adds a product, float32[rows * columns], to the gradients as `descend` reads them; the first one fills them."""
    n = product.size // n_rows
    for row in range(n_rows):
        for column in range(0, n, ROWS):
            at = (column // STRIP * n_rows + row) * STRIP + column % STRIP
            before = splat_half(0.0) if is_first else load_half(gradient, at)
            store(gradient, at, before + load_half(product, row * n + column))


@kernel_of(Path(__file__).parent)
def cost(errors, gradient, costs):
    """Each row's error times its gradient, float64[rows]; summed in float32 for 64 columns at a time."""
    n_rows = costs.size
    n = errors.size // n_rows
    for row in range(n_rows):
        costs[row] = 0
        for first in range(0, n, STRIP):
            part = splat_half(0.0)
            for column in range(first, first + STRIP, ROWS):
                at = (first // STRIP * n_rows + row) * STRIP + column - first
                part = fused(load_half(errors, row * n + column), load_half(gradient, at), part)
            costs[row] += sum_of_lanes(part)


@kernel_of(Path(__file__).parent)
def rows_of_levels(levels, n_columns, rows):
    """Writes levels, as `descend` leaves them, row after row: the low eight bits of each, uint8[rows * n_columns]."""
    n_rows, square = rows.size // n_columns, np.empty(ROWS * LANES, np.float32)
    for panel in range(n_columns // PANEL):
        for row in range(0, n_rows, ROWS):
            for column in range(0, PANEL, LANES):
                at = (panel * n_rows + row) * PANEL + column * ROWS
                for i in range(0, LANES, ROWS):
                    load_square(levels, at + i * ROWS, at + i * ROWS + ROWS // 2 * ROWS, ROWS, square, i, LANES)
                for i in range(ROWS):
                    to = (row + i) * n_columns + panel * PANEL + column
                    store(rows, to, truncated(load(square, i * LANES)))
