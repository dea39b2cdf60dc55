"""Encodes a matrix for the inputs it will meet: levels with error feedback, then coordinate descent.

Rows are worked on in chunks of 256, each by one thread, and matrix products sum over 256 numbers at a time. So our
threads do not decide how a sum is rounded. BLAS has to have one thread (`core/threads.py`): another number may change
the last bits of a product, and with them now and then a step of the descent. So may another place in a chunk: BLAS
rounds the last rows of a product differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.calibration.encoder.factors import STRIP, Factors, factors
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.core.threads import in_threads
from mimo_gguf.quantization.search.kinds import PANEL, Kind, check_held, kind_of
from mimo_gguf.quantization.search.packing import Blocks, pack

ROWS_AT_A_TIME: Final = 256
_TILE: Final = 16  # rows that the kernels hold side by side
_SMALLEST_GAIN: Final = np.float32(1e-7)  # of a row's error, that a step of the descent must bring

Numbers = NDArray[np.float32]


def encode_matrix(
    weights: Numbers,
    ggml_type: GgmlType,
    gram: Numbers | Factors,
    *,
    damping: float = 0.1,
    passes: int = 4,
    n_threads: int = 1,
) -> NDArray[np.uint8]:
    """Encodes a matrix so that its outputs stay close for inputs with this Gram matrix.

    The bytes of a row depend on its weights, its place among 256 and the Gram matrix alone: not on `n_threads`, nor on
    other rows.

    Args:
        weights: float32 [rows, columns].
        ggml_type: one of the types in `quantization/search/kinds.py`.
        gram: the mean of x x^T over the inputs x, float32 [columns, columns]; or its factors, computed once for the
            matrices that read the same inputs.
        damping: as in `factors`; not used if `gram` is factored already.
        passes: of coordinate descent.
        n_threads: chunks of 256 rows that are encoded at the same time.

    Returns:
        uint8 [rows, row bytes].

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

    def encode(chunk: Numbers) -> NDArray[np.uint8]:
        return _encode_chunk(chunk, ggml_type, kind, known, passes)

    return np.concatenate(in_threads(n_threads, encode, chunks))


def _check_columns(weights: Numbers, known: Factors) -> None:
    if weights.ndim != 2 or weights.shape[1] != known.n_columns:
        raise ValueError(f"weights of shape {weights.shape} do not fit statistics of {known.n_columns} columns")


def _encode_chunk(rows: Numbers, ggml_type: GgmlType, kind: Kind, known: Factors, passes: int) -> NDArray[np.uint8]:
    """Encodes up to 256 rows, filled up with zeros."""
    shape = ROWS_AT_A_TIME, len(known.weights)
    originals = np.empty(shape, np.float32) if rows.shape == shape else np.zeros(shape, np.float32)
    originals[: len(rows), : rows.shape[1]] = rows
    encoding, errors = _with_feedback(originals, len(rows), kind, known)
    if passes:
        _descend(encoding, errors, len(rows), kind, known, passes)
    data: NDArray[np.uint8] = pack(ggml_type, _blocks(encoding, kind))
    return data[: len(rows), : row_bytes(ggml_type, rows.shape[1])]


@dataclass(frozen=True, slots=True)
class _Encoding:
    """256 rows as the kernels hold them.

    Attributes:
        levels: float32 [panels, rows / 16, 256, 16]: sixteen rows side by side, column after column.
        chosen: float32 [panels, blocks, 2 + 2 * sub-blocks, rows]: d, dmin, and the integers of each sub-block.
    """

    levels: Numbers
    chosen: Numbers


def _with_feedback(originals: Numbers, n_rows: int, kind: Kind, known: Factors) -> tuple[_Encoding, Numbers]:
    """Encodes the first `n_rows` of 256 rows panel after panel; also gives value minus original, row after row."""
    from mimo_gguf.calibration.encoder.feedback import encode_panel, turn_panel
    from mimo_gguf.quantization.search.scales import FEW_STEPS, shape_of

    shape, trials = shape_of(kind, FEW_STEPS)
    n = originals.shape[1]
    room = np.empty if n_rows == ROWS_AT_A_TIME else np.zeros
    missed, errors = room((n, ROWS_AT_A_TIME), np.float32), room(originals.shape, np.float32)
    levels = room((n // PANEL, ROWS_AT_A_TIME // _TILE, PANEL, _TILE), np.float32)
    chosen = room((n // PANEL, kind.blocks, 2 + 2 * (kind.block // kind.sub), ROWS_AT_A_TIME), np.float32)
    for panel, first in enumerate(range(0, n, PANEL)):
        here = slice(first, first + PANEL)
        targets = np.empty((PANEL, ROWS_AT_A_TIME), np.float32)
        turn_panel(originals.reshape(-1), n, first, targets.reshape(-1))
        for before in range(0, first, PANEL):
            other = slice(before, before + PANEL)
            targets += known.feedback[other, here].T @ missed[other]
        factor = np.empty((PANEL, PANEL), np.float32)
        turn_panel(known.feedback[here].reshape(-1), n, first, factor.reshape(-1))
        flat: list[Any] = [targets, originals, factor, known.weights[here], missed[here], errors]
        flat += [levels[panel], chosen[panel]]
        encode_panel(shape, trials, n_rows, n, first, *(array.reshape(-1) for array in flat))
    return _Encoding(levels, chosen), errors


def _blocks(encoding: _Encoding, kind: Kind) -> Blocks:
    """What the kernels wrote, in the order of the rows."""
    from mimo_gguf.calibration.encoder.descent import rows_of_levels

    by_row = np.moveaxis(encoding.chosen.reshape(-1, *encoding.chosen.shape[2:]), -1, 0)
    rows, blocks, _ = by_row.shape
    levels = np.empty((rows, blocks, kind.block), np.int8)
    rows_of_levels(encoding.levels.reshape(-1), blocks * kind.block, levels.view(np.uint8).reshape(-1))
    return Blocks(
        levels,
        np.ascontiguousarray(by_row[:, :, 0]),
        np.ascontiguousarray(by_row[:, :, 1]),
        np.ascontiguousarray(by_row[:, :, 2::2]),
        np.ascontiguousarray(by_row[:, :, 3::2]),
    )


def _descend(encoding: _Encoding, errors: Numbers, n_rows: int, kind: Kind, known: Factors, passes: int) -> None:
    """Moves levels and scales of the first `n_rows` in place. `errors`: value minus original, row after row."""
    from mimo_gguf.calibration.encoder.descent import cost, descend
    from mimo_gguf.quantization.search.scales import FEW_STEPS, shape_of

    gradient, costs = _gradient(errors, known.gram), np.empty(len(errors))
    cost(errors.reshape(-1), gradient.reshape(-1), costs)
    thresholds = (costs * _SMALLEST_GAIN).astype(np.float32)
    diagonal, (shape, _) = known.gram.diagonal().copy(), shape_of(kind, FEW_STEPS)
    move_numbers = kind.offset_high == 0 and kind.scale_high > kind.scale_low
    flat = [array.reshape(-1) for array in (encoding.levels, gradient, known.strips)]
    descend(shape, move_numbers, passes, n_rows, *flat, diagonal, encoding.chosen.reshape(-1), thresholds)


def _gradient(errors: Numbers, gram: Numbers) -> Numbers:
    """The product with H, summed over 256 columns at a time, in their order; [strips, rows, 64]."""
    from mimo_gguf.calibration.encoder.descent import add_product

    rows, n = errors.shape
    product = np.empty_like(errors)
    gradient = np.empty((n // STRIP, rows, STRIP), np.float32)
    for first in range(0, n, PANEL):
        here = slice(first, first + PANEL)
        np.matmul(np.ascontiguousarray(errors[:, here]), gram[here], out=product)
        add_product(first == 0, product.reshape(-1), rows, gradient.reshape(-1))
    return gradient
