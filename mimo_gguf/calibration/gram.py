"""Gram matrices: H = mean of x x^T over tokens, for the rows x that each matrix of a model reads.

H says what an error dw in a row of a matrix does to its output: on average (dw . x)^2 = dw H dw^T. Two are collected
for each input: one to encode with, and a held-out one from other documents, by which the results are judged.

A model of 7 B has 24 GB of them, so they live for one block only. The plan of a calibration is therefore:

1. `sensitivity.py`: some 2000 tokens go forward through all blocks, and the gradients of the loss backward. On the way
   back each block's costs by type are measured on these tokens alone; no Gram matrix is needed for that.
2. `mix.py`: the costs decide the types.
3. `encode.py`: all tokens go forward once more, block by block. A block's Gram matrices are summed while its tokens
   pass; then its matrices are encoded, judged and stored, and the Gram matrices are dropped.

So one pass over the calibration text is enough, and memory is that of one block. Sums are float32 in a fixed order:
windows in their order, always the same number of rows in a product, and every product cut into the same tiles, each the
work of one thread. The same tokens on the same machine give the same bits with any number of threads, which their
digest shows. Another BLAS may round differently.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.digests import GRAM
from mimo_gguf.core.threads import in_threads

Floats = NDArray[np.float32]
Part = Literal["used", "held_out"]

PRODUCT_ROWS: Final = 2048  # rows of one product: fewer would spend more time on adding than on multiplying
_TILE: Final = 512  # columns of the Gram matrix that a thread computes at a time

# part of a matrix's name -> the part whose tap brings the rows that it reads, too
SHARED_INPUTS: Final = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate"}


def input_of(tensor_name: str) -> str:
    """The name under which the rows that a matrix reads are tapped: `blk.3.attn_v.weight` -> `blk.3.attn_q.weight`."""
    head, dot, tail = tensor_name.removesuffix(".weight").rpartition(".")
    return f"{head}{dot}{SHARED_INPUTS.get(tail, tail)}.weight"


@dataclass(frozen=True, slots=True)
class Gram:
    """A Gram matrix, float32 [n, n], and the number of tokens that it is the mean over."""

    matrix: Floats = field(repr=False)
    n_tokens: int

    @property
    def diagonal(self) -> Floats:
        """The mean square of each column: what an importance matrix holds, float32 [n]."""
        return np.ascontiguousarray(np.diagonal(self.matrix))

    def digest(self) -> str:
        """The hex digest of its bytes."""
        return GRAM.hex(np.ascontiguousarray(self.matrix).data)

    def error(self, difference: Floats) -> NDArray[np.float64]:
        """The mean square error of each row's output, float64 [rows], if the row's weights are off by `difference`."""
        errors: NDArray[np.float64] = np.einsum("ij,ij->i", difference @ self.matrix, difference, dtype=np.float64)
        return errors


@dataclass(frozen=True, slots=True)
class Statistics:
    """The Gram matrices of one input: the one to encode with, and the one to judge by."""

    used: Gram
    held_out: Gram


@dataclass(slots=True)
class _Sum:
    """The sum of x x^T over rows that arrive in pieces of any length. Only its upper triangle is summed."""

    n_threads: int
    total: Floats | None = None
    n_rows: int = 0
    waiting: Floats | None = None
    n_waiting: int = 0

    def add(self, rows: Floats) -> None:
        if self.waiting is None:
            self.waiting = np.empty((PRODUCT_ROWS, rows.shape[1]), np.float32)
        while len(rows):
            n = min(len(rows), PRODUCT_ROWS - self.n_waiting)
            self.waiting[self.n_waiting : self.n_waiting + n] = rows[:n]
            self.n_waiting += n
            rows = rows[n:]
            if self.n_waiting == PRODUCT_ROWS:
                self._multiply()

    def _multiply(self) -> None:
        if self.waiting is None or not self.n_waiting:
            return
        rows, n = self.waiting[: self.n_waiting], self.waiting.shape[1]
        total = np.zeros((n, n), np.float32) if self.total is None else self.total

        def add(tile: tuple[slice, slice]) -> None:
            across, down = tile
            total[tile] += rows[:, across].T @ rows[:, down]

        in_threads(self.n_threads, add, _tiles(n))
        self.total = total
        self.n_rows += self.n_waiting
        self.n_waiting = 0

    def mean(self) -> Gram:
        """Gives the Gram matrix; the sum is spent."""
        self._multiply()
        assert self.total is not None
        gram, self.total, self.waiting = self.total, None, None
        for across, down in _tiles(len(gram)):
            if across != down:
                gram[down, across] = gram[across, down].T
        gram /= np.float32(self.n_rows)
        return Gram(gram, self.n_rows)


def _tiles(n: int) -> list[tuple[slice, slice]]:
    """The tiles of an upper triangle, those on its diagonal whole."""
    parts = [slice(first, min(first + _TILE, n)) for first in range(0, n, _TILE)]
    return list(combinations_with_replacement(parts, 2))


class GramCollector:
    """Sums the Gram matrices of every input that is tapped. Its `tap` fits the forward pass of `reference`.

    Args:
        n_threads: tiles that are computed at the same time; with a BLAS of one thread it changes no bit.
    """

    def __init__(self, n_threads: int = 1) -> None:
        self._n_threads = n_threads
        self._sums: dict[Part, dict[str, _Sum]] = {"used": {}, "held_out": {}}
        self._part: Part = "used"

    def collect(self, part: Part) -> None:
        """Counts the rows that follow to this part."""
        self._part = part

    def tap(self, name: str, rows: Floats) -> None:
        """Adds rows [n, columns] that the matrix `name` reads."""
        self._sums[self._part].setdefault(name, _Sum(self._n_threads)).add(rows)

    def names(self) -> tuple[str, ...]:
        """The inputs that were tapped."""
        return tuple(self._sums["used"])

    def take(self, name: str) -> Statistics:
        """Gives the statistics of an input and forgets them. Without held-out rows it is judged by those it used."""
        used = self._sums["used"].pop(name).mean()
        others = self._sums["held_out"].pop(name, None)
        return Statistics(used, used if others is None else others.mean())
