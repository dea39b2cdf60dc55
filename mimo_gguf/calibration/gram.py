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
windows in their order, and always the same number of rows in a product. The same tokens on the same machine give the
same bits, which their digest shows; another BLAS may round differently.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.digests import GRAM

Floats = NDArray[np.float32]
Part = Literal["used", "held_out"]

_PRODUCT_ROWS: Final = 2048  # rows of one product: fewer would spend more time on adding than on multiplying

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
    """The sum of x x^T over rows that arrive in pieces of any length."""

    total: Floats | None = None
    n_rows: int = 0
    waiting: Floats | None = None
    n_waiting: int = 0

    def add(self, rows: Floats) -> None:
        if self.waiting is None:
            self.waiting = np.empty((_PRODUCT_ROWS, rows.shape[1]), np.float32)
        while len(rows):
            n = min(len(rows), _PRODUCT_ROWS - self.n_waiting)
            self.waiting[self.n_waiting : self.n_waiting + n] = rows[:n]
            self.n_waiting += n
            rows = rows[n:]
            if self.n_waiting == _PRODUCT_ROWS:
                self._multiply()

    def _multiply(self) -> None:
        if self.waiting is None or not self.n_waiting:
            return
        rows = self.waiting[: self.n_waiting]
        product: Floats = rows.T @ rows  # numpy asks BLAS for the symmetric product, which is half the work
        if self.total is None:
            self.total = product
        else:
            self.total += product
        self.n_rows += self.n_waiting
        self.n_waiting = 0

    def mean(self) -> Gram:
        """Gives the Gram matrix; the sum is spent."""
        self._multiply()
        assert self.total is not None
        gram, self.total, self.waiting = self.total, None, None
        gram /= np.float32(self.n_rows)
        return Gram(gram, self.n_rows)


class GramCollector:
    """Sums the Gram matrices of every input that is tapped. Its `tap` fits the forward pass of `reference`."""

    def __init__(self) -> None:
        self._sums: dict[Part, dict[str, _Sum]] = {"used": {}, "held_out": {}}
        self._part: Part = "used"

    def collect(self, part: Part) -> None:
        """Counts the rows that follow to this part."""
        self._part = part

    def tap(self, name: str, rows: Floats) -> None:
        """Adds rows [n, columns] that the matrix `name` reads."""
        self._sums[self._part].setdefault(name, _Sum()).add(rows)

    def names(self) -> tuple[str, ...]:
        """The inputs that were tapped."""
        return tuple(self._sums["used"])

    def take(self, name: str) -> Statistics:
        """Gives the statistics of an input and forgets them. Without held-out rows it is judged by those it used."""
        used = self._sums["used"].pop(name).mean()
        others = self._sums["held_out"].pop(name, None)
        return Statistics(used, used if others is None else others.mean())
