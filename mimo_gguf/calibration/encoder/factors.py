"""What a matrix's encoding needs of its inputs: the damped Gram matrix and its triangular factor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import WeightsError
from mimo_gguf.core.threads import in_threads
from mimo_gguf.quantization.search.kinds import PANEL

STRIP: Final = 64
"""The columns of a strip of H: what the descent reads of one row at a time."""

_BLOCK: Final = PANEL
_ROWS: Final = 1024  # that a thread works on at a time

Matrix32 = NDArray[np.float32]
Matrix64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factors:
    """A damped Gram matrix H = R R^T with R upper triangular, as the encoder reads it.

    Attributes:
        n_columns: the columns of the matrices that it belongs to. The arrays have more, up to a multiple of 256.
        gram: H, float32 [columns, columns].
        strips: H once more, 64 columns after 64 columns, as the descent reads it; float32 [columns / 64, columns, 64].
        feedback: r_ij / r_jj above the diagonal and on it, 0 below; float32 [columns, columns].
        weights: r_jj**2 divided by its mean, float32 [columns]: what an error in column j costs in the end.
        damping: what was added to H's diagonal, times the mean of the diagonal before.
        added: what was added.
    """

    n_columns: int
    gram: Matrix32 = field(repr=False)
    strips: Matrix32 = field(repr=False)
    feedback: Matrix32 = field(repr=False)
    weights: Matrix32 = field(repr=False)
    damping: float
    added: float


def factors(gram: Matrix32, damping: float = 0.1, n_threads: int = 1) -> Factors:
    """Damps a Gram matrix and factors it, in float64.

    It takes columns**3 / 3 multiplications and additions, and 16 bytes for each of columns**2 numbers.

    Args:
        gram: float32 [columns, columns], symmetric: the mean of x x^T over the inputs x.
        damping: what is added to the diagonal, times its mean.
        n_threads: parts of a product that are computed at the same time; with a BLAS of one thread it changes no bit.

    Raises:
        WeightsError: the matrix holds NaN or infinity, is all zeros, or is not positive even when damped.
    """
    diagonal = gram.diagonal().astype(np.float64)
    added = damping * float(diagonal.mean())
    if not np.isfinite(added) or not np.isfinite(gram.sum(dtype=np.float64)):
        raise WeightsError("the statistics of a matrix hold NaN or infinity", hint="collect them again")
    if added <= 0:
        raise WeightsError("the statistics of a matrix are all zero", hint="collect them from other text")
    n = -(-len(gram) // PANEL) * PANEL
    root = np.zeros((n, n))
    root[: len(gram), : len(gram)] = gram
    root[np.diag_indices(n)] += added
    damped = root.astype(np.float32)
    _factor(root, n_threads)
    pivots = root.diagonal().copy()
    feedback = np.zeros((n, n), np.float32)
    for first in range(0, n, _BLOCK):
        last = min(first + _BLOCK, n)
        feedback[:last, first:last] = root[:last, first:last] / pivots[first:last]
        feedback[first:last, first:last] = np.triu(feedback[first:last, first:last])
    del root
    weights = pivots**2
    strips = np.ascontiguousarray(damped.reshape(n, -1, STRIP).swapaxes(0, 1))
    weights = (weights / weights.mean()).astype(np.float32)
    return Factors(len(gram), damped, strips, feedback, weights, damping, added)


def _factor(h: Matrix64, n_threads: int) -> None:
    """Replaces the upper triangle of a symmetric positive matrix by R with h = R R^T, from the last block up.

    Products sum over 256 numbers at a time, because BLAS cuts longer sums differently for other numbers of threads.
    """
    n = len(h)
    for first in reversed(range(0, n, _BLOCK)):
        last = min(first + _BLOCK, n)

        def subtract(top: int, first: int = first, last: int = last) -> None:
            rows = slice(top, min(top + _ROWS, last))
            for later in range(last, n, _BLOCK):
                other = slice(later, later + _BLOCK)
                h[rows, first:last] -= h[rows, other] @ h[first:last, other].T

        in_threads(n_threads, subtract, range(0, last, _ROWS))
        root = _root(h[first:last, first:last])
        h[first:last, first:last] = root
        h[:first, first:last] = h[:first, first:last] @ _inverse(root).T


def _root(square: Matrix64) -> Matrix64:
    """R of one block. Column by column, because LAPACK's result depends on the number of threads."""
    rest = square.copy()
    root = np.zeros_like(rest)
    for j in reversed(range(len(rest))):
        if not rest[j, j] > 0:
            raise WeightsError(
                "the statistics of a matrix are not positive definite", hint="raise the damping or collect more tokens"
            )
        column = rest[: j + 1, j] / np.sqrt(rest[j, j])
        root[: j + 1, j] = column
        rest[:j, :j] -= column[:j, None] * column[None, :j]
    return root


def _inverse(upper: Matrix64) -> Matrix64:
    """The inverse of a small upper triangular matrix, row by row from the last."""
    n = len(upper)
    inverse = np.zeros_like(upper)
    for i in reversed(range(n)):
        inverse[i, i] = 1
        inverse[i] -= (upper[i, i + 1 :, None] * inverse[i + 1 :]).sum(0)
        inverse[i] /= upper[i, i]
    return inverse
