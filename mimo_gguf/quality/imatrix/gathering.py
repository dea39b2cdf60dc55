"""Sums of squares of what matrices read, while a model runs: the numerator and the denominator of their importance."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import WeightsError
from mimo_gguf.core.model_source import TensorInfo

# Matrices that read the same rows as another one, which stands for them: half the work, and half the room.
_FOLLOWERS: Final = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}
_FOLLOWER: Final = re.compile(rf"(blk\.\d+\.)({'|'.join(_FOLLOWERS)})(\.weight)")
_ROWS: Final = 64  # that are summed in float32; sums of them are float64, so that a million rows lose nothing


def first_reader(matrix: str) -> str:
    """The matrix whose sums are also those of `matrix`: `blk.3.attn_q.weight` for `blk.3.attn_v.weight`."""
    found = _FOLLOWER.fullmatch(matrix)
    return matrix if found is None else found[1] + _FOLLOWERS[found[2]] + found[3]


@dataclass(slots=True)
class RowSums:
    """The sums of one matrix: float64 [n_columns], and the number of rows that were added."""

    squares: NDArray[np.float64]
    n_rows: int = 0


@dataclass(slots=True)
class Gathering:
    """The sums of all matrices, by the names of `first_reader`.

    Attributes:
        sums: what was gathered so far.
        stale: matrices whose sums, of an interrupted run, begin anew as soon as they are seen again.
    """

    sums: dict[str, RowSums] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)

    def tap(self, matrix: str, rows: NDArray[np.float32]) -> None:
        """Adds rows that a matrix reads, float32 [n_rows, n_columns].

        Raises:
            WeightsError: they are not finite.
        """
        if matrix in self.stale:
            self.stale.discard(matrix)
            del self.sums[matrix]
        of_matrix = self.sums.get(matrix)
        if of_matrix is None:
            of_matrix = self.sums[matrix] = RowSums(np.zeros(rows.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, len(rows), _ROWS):
                part = rows[first : first + _ROWS]
                of_matrix.squares += np.einsum("ij,ij->j", part, part)
        of_matrix.n_rows += len(rows)
        if not np.isfinite(of_matrix.squares).all():
            raise WeightsError(
                f"{matrix} reads values that are not finite: the model is broken",
                hint="check its file with mimo-gguf verify, or take one with more bits per weight",
            )

    def add(self, other: Gathering) -> None:
        """Adds all sums of another one."""
        for matrix, more in other.sums.items():
            of_matrix = self.sums.setdefault(matrix, RowSums(np.zeros(more.squares.size)))
            of_matrix.squares += more.squares
            of_matrix.n_rows += more.n_rows

    def of_matrices(self, infos: Iterable[TensorInfo]) -> dict[str, RowSums]:
        """The sums of each matrix among a model's tensors that was multiplied with something."""
        names = (info.name for info in infos if len(info.shape) > 1)
        return {name: self.sums[first_reader(name)] for name in names if first_reader(name) in self.sums}
