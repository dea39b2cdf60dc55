"""Encodes a matrix for the inputs it will meet: levels with error feedback, then coordinate descent.

Rows are worked on in chunks of 256, each by one thread, and matrix products sum over 256 numbers at a time. So neither
our threads nor the way the rows are handed over decides how a sum is rounded. BLAS has to have one thread
(`core/threads.py`): another number may change the last bits of a product, and with them now and then a step of the
descent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.calibration.encoder.factors import Factors, factors
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.core.threads import in_threads
from mimo_gguf.quantization.search.kinds import PANEL, Kind, check_held, kind_of
from mimo_gguf.quantization.search.packing import Blocks, pack

ROWS_AT_A_TIME: Final = 256
_SMALLEST_GAIN: Final = np.float32(1e-7)  # of a row's error, that a step of the descent must bring

Numbers = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A matrix in ggml's bytes, and what its errors do to its outputs.

    Attributes:
        data: uint8 [rows, row bytes].
        error_before: the squared error of the outputs, tr((W - V) Gram (W - V)^T), before the coordinate descent.
        error_after: the same of `data`.
    """

    data: NDArray[np.uint8] = field(repr=False)
    error_before: float
    error_after: float


def encode_matrix(
    weights: Numbers,
    ggml_type: GgmlType,
    gram: Numbers | Factors,
    *,
    damping: float = 0.1,
    passes: int = 4,
    n_threads: int = 1,
) -> Encoded:
    """Encodes a matrix so that its outputs stay close for inputs with this Gram matrix.

    The bytes depend on the weights and the Gram matrix alone: not on `n_threads`, nor on other rows.

    Args:
        weights: float32 [rows, columns].
        ggml_type: one of the types in `quantization/search/kinds.py`.
        gram: the mean of x x^T over the inputs x, float32 [columns, columns]; or its factors, computed once for the
            matrices that read the same inputs.
        damping: as in `factors`; not used if `gram` is factored already.
        passes: of coordinate descent.
        n_threads: chunks of 256 rows that are encoded at the same time.

    Raises:
        UsageError: the type cannot be written.
        WeightsError: weights or statistics hold NaN or infinity, or weights are too large for the type.
        ValueError: the shapes do not fit together.
    """
    kind = kind_of(ggml_type)
    known = gram if isinstance(gram, Factors) else factors(gram, damping, n_threads)
    _check_columns(weights, known)
    check_held(weights, kind, ggml_type.name)
    row_bytes(ggml_type, weights.shape[1])
    chunks = [weights[first : first + ROWS_AT_A_TIME] for first in range(0, len(weights), ROWS_AT_A_TIME)]

    def encode(chunk: Numbers) -> Encoded:
        return _encode_chunk(chunk, ggml_type, kind, known, passes)

    return _joined(in_threads(n_threads, encode, chunks))


def _check_columns(weights: Numbers, known: Factors) -> None:
    if weights.ndim != 2 or weights.shape[1] != known.n_columns:
        raise ValueError(f"weights of shape {weights.shape} do not fit statistics of {known.n_columns} columns")


def _joined(parts: Sequence[Encoded]) -> Encoded:
    return Encoded(
        np.concatenate([part.data for part in parts]),
        sum(part.error_before for part in parts),
        sum(part.error_after for part in parts),
    )


def _encode_chunk(rows: Numbers, ggml_type: GgmlType, kind: Kind, known: Factors, passes: int) -> Encoded:
    """Encodes up to 256 rows, filled up with zeros."""
    padding = (0, ROWS_AT_A_TIME - len(rows)), (0, len(known.weights) - rows.shape[1])
    originals = np.pad(rows, padding) if np.any(padding) else rows
    encoding, missed = _with_feedback(originals, len(rows), kind, known)
    before, after = _descend(encoding, missed, originals, len(rows), kind, known, passes)
    data = pack(ggml_type, _blocks(encoding, kind))[: len(rows), : row_bytes(ggml_type, rows.shape[1])]
    return Encoded(data, before, after)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """256 rows as the kernels hold them.

    Attributes:
        levels, values: float32 [panels, rows / 16, 256, 16]: sixteen rows side by side, column after column.
        chosen: float32 [panels, blocks, 2 + 2 * sub-blocks, rows]: d, dmin, and the integers of each sub-block.
    """

    levels: Numbers
    values: Numbers
    chosen: Numbers


def _with_feedback(originals: Numbers, n_rows: int, kind: Kind, known: Factors) -> tuple[_Encoding, Numbers]:
    """Encodes the first `n_rows` of 256 rows panel after panel; also gives value minus original, row after row."""
    from mimo_gguf.calibration.encoder.feedback import encode_panel, turn_panel
    from mimo_gguf.quantization.search.scales import FEW_STEPS, shape_of

    shape, trials = shape_of(kind, FEW_STEPS)
    n = originals.shape[1]
    room = np.empty if n_rows == ROWS_AT_A_TIME else np.zeros
    missed, errors = room(originals.shape, np.float32), room((n, ROWS_AT_A_TIME), np.float32)
    levels, values = (room((n // PANEL, ROWS_AT_A_TIME * PANEL), np.float32) for _ in range(2))
    chosen = room((n // PANEL, kind.blocks, 2 + 2 * (kind.block // kind.sub), ROWS_AT_A_TIME), np.float32)
    for panel, first in enumerate(range(0, n, PANEL)):
        here = slice(first, first + PANEL)
        targets = np.empty((PANEL, ROWS_AT_A_TIME), np.float32)
        turn_panel(originals.reshape(-1), n, first, targets.reshape(-1))
        for before in range(0, first, PANEL):
            other = slice(before, before + PANEL)
            targets += known.feedback[other, here].T @ errors[other]
        factor = np.empty((PANEL, PANEL), np.float32)
        turn_panel(known.feedback[here].reshape(-1), n, first, factor.reshape(-1))
        flat: list[Any] = [targets, originals, factor, known.weights[here], errors[here], missed]
        flat += [levels[panel], values[panel], chosen[panel]]
        encode_panel(shape, trials, n_rows, n, first, *(array.reshape(-1) for array in flat))
    return _Encoding(levels, values, chosen), missed


def _blocks(encoding: _Encoding, kind: Kind) -> Blocks:
    """What the kernels wrote, in the order of the rows."""
    by_row = np.moveaxis(encoding.chosen.reshape(-1, *encoding.chosen.shape[2:]), -1, 0)
    rows, blocks, _ = by_row.shape
    return Blocks(
        _rows_of(encoding.levels).reshape(rows, blocks, kind.block),
        np.ascontiguousarray(by_row[:, :, 0]),
        np.ascontiguousarray(by_row[:, :, 1]),
        np.ascontiguousarray(by_row[:, :, 2::2]),
        np.ascontiguousarray(by_row[:, :, 3::2]),
    )


def _rows_of(tiles: Numbers) -> Numbers:
    """Levels or values, row after row."""
    from mimo_gguf.calibration.encoder.descent import turn_back

    n = len(tiles) * PANEL
    rows = np.empty((ROWS_AT_A_TIME, n), np.float32)
    turn_back(tiles.reshape(-1), n, rows.reshape(-1))
    return rows


def _descend(
    encoding: _Encoding, missed: Numbers, originals: Numbers, n_rows: int, kind: Kind, known: Factors, passes: int
) -> tuple[float, float]:
    """Moves levels and scales of the first `n_rows` in place; the squared error of the outputs before and after."""
    from mimo_gguf.calibration.encoder.descent import descend
    from mimo_gguf.quantization.search.scales import FEW_STEPS, shape_of

    gradient = _gradient(missed, known.gram)
    costs, error_before = _costs(missed, gradient, known)
    thresholds = (costs * _SMALLEST_GAIN).astype(np.float32)
    diagonal, (shape, _) = known.gram.diagonal().copy(), shape_of(kind, FEW_STEPS)
    move_numbers = kind.offset_high == 0 and kind.scale_high > kind.scale_low
    flat = [array.reshape(-1) for array in (encoding.values, encoding.levels, gradient, known.strips)]
    descend(shape, move_numbers, passes, n_rows, *flat, diagonal, encoding.chosen.reshape(-1), thresholds)
    np.subtract(_rows_of(encoding.values), originals, out=missed)
    return error_before, _costs(missed, gradient, known)[1]


def _gradient(missed: Numbers, gram: Numbers) -> Numbers:
    """The product with H, summed over 256 columns at a time, in their order; [panels, rows, 256]."""
    from mimo_gguf.calibration.encoder.descent import add_product

    rows, n = missed.shape
    product = np.empty_like(missed)
    gradient = np.zeros((n // PANEL, rows, PANEL), np.float32)
    for first in range(0, n, PANEL):
        here = slice(first, first + PANEL)
        np.matmul(np.ascontiguousarray(missed[:, here]), gram[here], out=product)
        add_product(product.reshape(-1), rows, gradient.reshape(-1))
    return gradient


def _costs(errors: Numbers, gradient: Numbers, known: Factors) -> tuple[NDArray[np.float64], float]:
    """The squared error of each row's outputs, damped, and that of all rows without the damping."""
    from mimo_gguf.calibration.encoder.descent import sum_squares

    costs, squares = np.empty(len(errors)), np.empty(len(errors))
    sum_squares(errors.reshape(-1), gradient.reshape(-1), costs, squares)
    return costs, float(costs.sum() - known.added * squares.sum())
