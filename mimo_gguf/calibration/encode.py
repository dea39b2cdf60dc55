"""Encodes one matrix with error feedback, and judges the result on held-out text.

Some rows are compared, under the held-out Gram matrix, with the same rows in plain importance encoding. If plain is
better, the whole matrix is encoded so: no matrix is ever worse for being calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.calibration.costs import decode, encode_plainly
from mimo_gguf.calibration.encoder.encode import encode_matrix
from mimo_gguf.calibration.encoder.factors import Factors
from mimo_gguf.calibration.gram import Gram, Statistics
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.machine import available_cores

Floats = NDArray[np.float32]
Data = NDArray[np.uint8]
# Gives a matrix in parts, in the order of its rows, each float32 [rows, columns]; it may be called again.
Strips = Callable[[], Iterator[Floats]]

DAMPING: Final = 0.1  # of the mean of the Gram matrix's diagonal
PASSES: Final = 4  # of coordinate descent after the feedback
_ENOUGH_TOKENS: Final = 10  # for each column; with fewer the damping grows
_MOST_DAMPING: Final = 1.0
_JUDGED_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How matrices are encoded: the damping for plenty of tokens, passes of descent, and threads (None: all cores)."""

    damping: float = DAMPING
    passes: int = PASSES
    n_threads: int | None = None

    @property
    def threads(self) -> int:
        """The number of threads."""
        return self.n_threads or available_cores()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a matrix was encoded in a type, and what that is worth.

    Attributes:
        method: "feedback", or "importance" if that is better or the type knows no feedback.
        error, plain_error: mean square error of some rows' outputs on held-out text, as encoded and as plain
            importance encoding leaves it.
        damping: of the Gram matrix; 0 without feedback.
        n_tokens: tokens of the statistics.
    """

    tensor: str
    ggml_type: str
    method: str
    error: float
    plain_error: float
    damping: float
    n_tokens: int

    @property
    def ratio(self) -> float:
        """The share that is left of plain importance encoding's error."""
        return self.error / self.plain_error if self.plain_error > 0 else 1.0


def damping_for(n_tokens: int, n_columns: int, least: float = DAMPING) -> float:
    """The damping for statistics of `n_tokens` over `n_columns`: more if there are fewer than ten tokens a column.

    Measured on a model of 135 M: with 14 tokens a column 0.1 is best, with 4 about 0.3, and with 1.3 even that is
    worse than plain importance encoding.
    """
    per_column = n_tokens / n_columns
    return max(least, min(_MOST_DAMPING, least * _ENOUGH_TOKENS / per_column))


def encode_judged(
    tensor: str,
    strips: Strips,
    n_rows: int,
    ggml_type: GgmlType,
    statistics: Statistics,
    shared: Factors | None,
    options: EncodeOptions,
) -> tuple[Data, Outcome]:
    """Encodes a matrix in a type by the better method; gives its bytes, uint8 [rows, row_bytes], and their worth.

    Args:
        shared: the factors of the Gram matrix; None for plain importance encoding.
    """
    diagonal = statistics.used.diagonal
    judge = _Judge(statistics.held_out, ggml_type, diagonal, max(1, n_rows // _JUDGED_ROWS))
    data = []
    for rows in strips():
        if shared is not None:
            coded = encode_matrix(rows, ggml_type, shared, passes=options.passes, n_threads=options.threads)
        else:
            coded = encode_plainly(rows, ggml_type, diagonal)
        judge.look_at(rows, coded)
        data.append(coded)
    is_better = shared is not None and judge.error <= judge.plain_error
    if shared is not None and not is_better:
        data = [encode_plainly(rows, ggml_type, diagonal) for rows in strips()]
    return np.concatenate(data), Outcome(
        tensor=tensor,
        ggml_type=ggml_type.name,
        method="feedback" if is_better else "importance",
        error=judge.error if is_better else judge.plain_error,
        plain_error=judge.plain_error,
        damping=shared.damping if is_better and shared is not None else 0.0,
        n_tokens=statistics.used.n_tokens,
    )


@dataclass(slots=True)
class _Judge:
    """Sums the errors of every `step`-th row on held-out text: as encoded, and in plain importance encoding."""

    held_out: Gram
    ggml_type: GgmlType
    importance: Floats
    step: int
    error: float = 0.0
    plain_error: float = 0.0

    def look_at(self, rows: Floats, coded: Data) -> None:
        """Adds the errors of a part of the matrix."""
        some = np.ascontiguousarray(rows[:: self.step])
        plain = encode_plainly(some, self.ggml_type, self.importance)
        self.error += self._error(some, np.ascontiguousarray(coded[:: self.step]))
        self.plain_error += self._error(some, plain)

    def _error(self, rows: Floats, coded: Data) -> float:
        return float(self.held_out.error(decode(coded, self.ggml_type, rows.shape[1]) - rows).sum())
