"""`--search wide`: blocks of the same types with smaller errors than llama.cpp's, from weights and importance.

The search tries more scales than llama.cpp does, judges every choice by the weighted error that it leads to, and fits
the numbers that a super-block shares to all of its weights. Files stay what they are for every reader.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import WeightsError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.quantization.kernels import Kernel
from mimo_gguf.quantization.search.kinds import KINDS, Kind, check_held, kind_of
from mimo_gguf.quantization.search.packing import Blocks, pack

WIDE: Final = "wide"
_VERSION: Final = 1  # of the search: another one leads to other bytes
_ROWS: Final = 16

Numbers = NDArray[np.float32]


def search_matrix(weights: Numbers, ggml_type: GgmlType, importance: Numbers | None = None) -> NDArray[np.uint8]:
    """Encodes rows so that the weighted squared error of their weights is small.

    Args:
        weights: float32 [rows, columns], whole rows of blocks.
        ggml_type: one of the types in `kinds.py`.
        importance: float32 [columns], the weight of each column's errors; None means that all count alike.

    Returns:
        uint8 [rows, row bytes].

    Raises:
        UsageError: the type cannot be written.
        WeightsError: weights are NaN, infinite, or too large for the type.
    """
    kind = kind_of(ggml_type)
    check_held(weights, kind, ggml_type.name)
    n_rows, n_columns = weights.shape
    if n_columns % kind.block:
        raise ValueError(f"a row of {n_columns} weights is not a whole number of {ggml_type.name} blocks")
    rows = np.zeros((-(-n_rows // _ROWS) * _ROWS, n_columns), np.float32)
    rows[:n_rows] = weights
    columns = np.ones(n_columns, np.float32) if importance is None else _leveled(importance)
    return pack(ggml_type, _searched(rows, kind, columns))[:n_rows]


def wide_kernel(ggml_type: GgmlType, source_type: GgmlType, with_importance: bool) -> Kernel | None:
    """The search as a kernel of the quantization's loop; None for types that it cannot write."""
    if ggml_type not in KINDS:
        return None

    def run(src: NDArray[Any], out: NDArray[np.uint8], importance: Numbers | None) -> None:
        out[:] = search_matrix(_as_float32(src, source_type), ggml_type, importance)

    return Kernel(ggml_type, source_type, with_importance, f"wide search {_VERSION}", "--search wide", run)


def _searched(rows: Numbers, kind: Kind, importance: Numbers) -> Blocks:
    from mimo_gguf.quantization.search.rows import search_rows
    from mimo_gguf.quantization.search.scales import MANY_STEPS, shape_of

    shape, trials = shape_of(kind, MANY_STEPS)
    n_rows, n_columns = rows.shape
    levels = np.empty_like(rows)
    chosen = np.empty((n_rows // _ROWS, n_columns // kind.block, 2 + 2 * shape.subs, _ROWS), np.float32)
    search_rows(shape, trials, n_columns, rows.reshape(-1), importance, levels.reshape(-1), chosen.reshape(-1))
    by_row = np.moveaxis(chosen, 3, 1).reshape(n_rows, -1, 2 + 2 * shape.subs)
    return Blocks(
        levels.astype(np.int8).reshape(n_rows, -1, kind.block),
        by_row[..., 0],
        by_row[..., 1],
        by_row[..., 2::2],
        by_row[..., 3::2],
    )


def _leveled(importance: Numbers) -> Numbers:
    """Importance with a mean of 1, so that squares neither vanish nor overflow; all alike if there is none."""
    mean = importance.mean(dtype=np.float64)
    if not np.isfinite(mean):
        raise WeightsError("the importance of a matrix holds NaN or infinity", hint="make the importance matrix again")
    return np.ones_like(importance) if mean <= 0 else (importance / mean).astype(np.float32)


def _as_float32(rows: NDArray[Any], source_type: GgmlType) -> Numbers:
    if source_type is GgmlType.BF16:
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return rows.view(np.float16 if source_type is GgmlType.F16 else np.float32).astype(np.float32, copy=False)
