"""The named, invertible changes that a recipe may make to a tensor, in place, while its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

# It changes rows in place; they are raw bytes, uint8 [rows, row_bytes].
RowTransform = Callable[[NDArray[np.uint8]], None]


def swap_halves(rows: NDArray[np.uint8]) -> None:
    """Exchanges the left and right half of every row; doing it twice changes nothing.

    MiMo's MTP projection multiplies [hidden, embedding], llama.cpp's NextN graph [embedding, hidden].
    """
    middle = rows.shape[-1] // 2
    left = rows[..., :middle].copy()
    rows[..., :middle] = rows[..., middle:]
    rows[..., middle:] = left


TRANSFORMS: Final[Mapping[str, RowTransform]] = {"swap_halves": swap_halves}
