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
from mimo_gguf.quantization.kernels.lanes import load_half, splat_half, store
from mimo_gguf.quantization.kernels.transposes import load_square
from mimo_gguf.quantization.search.jit import kernel_of
from mimo_gguf.quantization.search.kinds import PANEL
from mimo_gguf.quantization.search.vectors import ROWS, fused, prefetch, step_of, sum_of_lanes

_LINE: Final = 16  # numbers of a cache line


@step_of
def _catch_up(rows, n_rows, n_own, strip, first, last, taken):
    """Adds to the gradients in a strip what the last steps in the panels `first` to `last` are worth there.

    Meanwhile it asks for the strip's rows of the next panel.
    """
    columns, moves, begins, ends = taken
    at = (strip // STRIPS * n_rows * STRIPS + strip % STRIPS) * STRIP
    for panel in range(first, last):
        source = (strip * rows.diagonal.size + panel * PANEL) * STRIP
        for row in range(n_own):
            for line in range(0, STRIP, _LINE):
                prefetch(rows.strips, source + (PANEL + row) * STRIP + line)
            begin, end = begins[panel * n_rows + row], ends[panel * n_rows + row]
            if end > begin:
                add_steps(rows.gradient, at + row * PANEL, rows.strips, source, columns, moves, begin, end)


@step_of
def _add_later(rows, steps, n_rows, n_own, strip, own, at):
    """Adds to the gradients in a strip what the steps in its panel that came after its turn are worth there."""
    for row in range(n_own):
        mark, count = steps.marks[strip % STRIPS * n_rows + row], steps.counts[row]
        if count > mark:
            add_steps(
                rows.gradient, at + row * PANEL, rows.strips, own, steps.columns, steps.moves,
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
def _descend_panel(shape, move_numbers, rows, n_rows, n_own, panel, thresholds, taken, steps, scratch):
    """Takes the steps of all rows in a panel; gives their number."""
    n = rows.diagonal.size
    at, chosen_at = panel * n_rows * PANEL, panel * (rows.chosen.size // (n // PANEL))
    for strip in range(panel * STRIPS, panel * STRIPS + STRIPS):
        _catch_up(rows, n_rows, n_own, strip, 0, panel, taken)
        _catch_up(rows, n_rows, n_own, strip, panel + 1, n // PANEL, taken)
        first, own = strip % STRIPS * STRIP, (strip * n + panel * PANEL) * STRIP
        for row in range(0, n_own, ROWS):
            place = Place(row, n_rows, first, panel * PANEL, at + row * PANEL, chosen_at + row, own)
            descend_strip(
                shape, move_numbers, rows, steps, scratch, place, at + row * PANEL + first, load_half(thresholds, row)
            )
    for strip in range(panel * STRIPS, panel * STRIPS + STRIPS):
        own = (strip * n + panel * PANEL) * STRIP
        _add_later(rows, steps, n_rows, n_own, strip, own, at + strip % STRIPS * STRIP)
    return _keep_steps(steps, n_rows, n_own, panel, taken)


@kernel_of(Path(__file__).parent)
def descend(shape, move_numbers, passes, n_wanted, values, levels, gradient, strips, diagonal, chosen, thresholds):
    """Passes over all columns of the first rows, until there are no more steps.

    Args:
        shape: what `shape_of` gives.
        move_numbers: whether the integers of the scales move, too.
        passes: at most so many.
        n_wanted: the rows, from the first.
        values, levels: what `encode_panel` gives; they move with the steps.
        gradient: float32[panels * rows * 256], a panel's 256 columns of all rows after another's.
        strips, diagonal: H, as in `Factors`, and its diagonal, float32, flat.
        chosen: what `encode_panel` gives for all panels; the integers of the scales may move.
        thresholds: float32[rows]: what a step must gain.
    """
    n_rows, n_panels = thresholds.size, diagonal.size // PANEL
    n_own = (n_wanted + ROWS - 1) // ROWS * ROWS
    rows = Encoded(values, levels, chosen, gradient, strips, diagonal)
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
        np.empty(PANEL * ROWS, np.float32),
        np.arange(PANEL),
    )
    for _ in range(passes):
        n_steps = 0
        for panel in range(n_panels):
            n_steps += _descend_panel(
                shape, move_numbers, rows, n_rows, n_own, panel, thresholds, taken, steps, scratch
            )
        if n_steps == 0:
            break
    for strip in range(n_panels * STRIPS):
        _catch_up(rows, n_rows, n_own, strip, strip // STRIPS + 1, n_panels, taken)


@kernel_of(Path(__file__).parent)
def add_product(product, n_rows, gradient):
    """Adds a product, float32[rows * columns], to the gradients as `descend` reads them."""
    n = product.size // n_rows
    for row in range(n_rows):
        for panel in range(n // PANEL):
            for i in range(0, PANEL, ROWS):
                at, source = (panel * n_rows + row) * PANEL + i, row * n + panel * PANEL + i
                store(gradient, at, load_half(gradient, at) + load_half(product, source))


@kernel_of(Path(__file__).parent)
def sum_squares(errors, gradient, costs, squares):
    """Each row's error times its gradient, and its squared errors, float64[rows]; 256 columns at a time in float32."""
    n_rows = costs.size
    n = errors.size // n_rows
    for row in range(n_rows):
        cost = square = 0.0
        for panel in range(n // PANEL):
            a = b = splat_half(0.0)
            for i in range(0, PANEL, ROWS):
                error = load_half(errors, row * n + panel * PANEL + i)
                a = fused(error, load_half(gradient, (panel * n_rows + row) * PANEL + i), a)
                b = fused(error, error, b)
            cost += sum_of_lanes(a)
            square += sum_of_lanes(b)
        costs[row], squares[row] = cost, square


@kernel_of(Path(__file__).parent)
def turn_back(tiles, n_columns, rows):
    """Writes what lies as `encode_panel` gives it row after row: float32[rows * n_columns]."""
    n_rows = rows.size // n_columns
    for panel in range(n_columns // PANEL):
        for row in range(0, n_rows, ROWS):
            for column in range(0, PANEL, ROWS):
                at = ((panel * n_rows + row) * PANEL) + column * ROWS
                to = row * n_columns + panel * PANEL + column
                load_square(tiles, at, at + 8 * ROWS, ROWS, rows, to, n_columns)
