"""Solves for the mix: one ggml type per matrix, so that the predicted divergence is least within a number of bytes.

Each matrix has a cost for each type, the divergence that writing it so is predicted to add (`costs.py` measures them).
Costs of different matrices add up. The least sum under a bound on the bytes is found in two steps:

- With a price on a byte, each matrix alone takes the type with the least cost plus price. The lowest price whose
  choices keep within the bound is found by bisection. This is optimal for the bytes that it uses (Everett 1963,
  Generalized Lagrange multiplier method for solving problems of optimum allocation of resources).
- The few bytes that are left go, one change at a time, to whatever change gains most for its bytes. Then pairs of
  matrices trade types, while a pair is found whose trade keeps within the bound and gains.

Everything here is pure arithmetic on tables; a model of 250 matrices takes about a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.ggml_types import GgmlType, block_size
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.core.units import format_size

_OF_256: Final = (
    GgmlType.Q2_K, GgmlType.Q3_K, GgmlType.IQ4_XS, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K, GgmlType.Q8_0,
)  # fmt: skip
_OF_32: Final = (GgmlType.Q4_0, GgmlType.IQ4_NL, GgmlType.Q5_0, GgmlType.Q8_0)
_HALVINGS: Final = 60  # of the logarithm of the price: beyond float64's last place
_LOWEST_PRICE: Final = 1e-30
_HIGHEST_PRICE: Final = 1e6
_MOST_TRADES: Final = 200
_SMALLEST_GAIN: Final = 1e-9  # of the whole cost, that a trade must bring


@dataclass(frozen=True, slots=True)
class Option:
    """A type that a matrix may get: its bytes in the file, and the divergence that it is predicted to add (nats)."""

    ggml_type: GgmlType
    n_bytes: int
    cost: float


@dataclass(frozen=True, slots=True)
class Mix:
    """A solved mix.

    Attributes:
        types: a type for each matrix, by its name, in the order of the request.
        n_bytes: bytes of these matrices.
        predicted: sum of their costs: the mean KL divergence (nats) that they are predicted to cause.
        costs: the part of each matrix in it.
    """

    types: Mapping[str, GgmlType]
    n_bytes: int
    predicted: float
    costs: Mapping[str, float] = field(repr=False)


def mixed_types(n_columns: int) -> tuple[GgmlType, ...]:
    """The types that the solver mixes for rows of `n_columns`: those whose encoders know error feedback.

    Rows of super-blocks take no type of small blocks but Q8_0: the others have the bytes of one that is better.
    """
    return _OF_256 if n_columns % block_size(GgmlType.Q4_K) == 0 else _OF_32


def options_of(info: TensorInfo, costs: Mapping[GgmlType, float], types: Sequence[GgmlType]) -> tuple[Option, ...]:
    """The types among `types` that a matrix can have by its width and whose cost is known."""
    return tuple(
        Option(ggml_type, TensorInfo(info.name, info.shape, ggml_type).n_bytes, costs[ggml_type])
        for ggml_type in types
        if ggml_type in costs and info.n_columns % block_size(ggml_type) == 0
    )


def solve_mix(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> Mix:
    """Chooses one option for each matrix: the least sum of costs within `budget_bytes`.

    Args:
        options: the options of each matrix, by its name. A matrix with one option is fixed.
        budget_bytes: the most bytes that all these matrices together may have.

    Raises:
        UsageError: even the smallest options need more.
    """
    table = _Table.of(options)
    smallest = int(table.bytes.min(axis=1).sum()) if options else 0
    if smallest > budget_bytes:
        raise UsageError(
            f"{format_size(budget_bytes)} for the matrices; the smallest types need {format_size(smallest)}",
            hint="allow more bytes, or fix fewer types",
        )
    chosen = _trade(table, _fill(table, _within(table, budget_bytes), budget_bytes), budget_bytes)
    return _mix(options, table, chosen)


def mix_of(options: Mapping[str, Sequence[Option]], types: Mapping[str, GgmlType]) -> Mix:
    """The mix that `types` already is, with its prediction.

    Raises:
        KeyError: a type that is not among a matrix's options.
    """
    table = _Table.of(options)
    places = [[option.ggml_type for option in row].index(types[name]) for name, row in options.items()]
    return _mix(options, table, np.array(places, np.intp))


@dataclass(frozen=True, slots=True)
class _Table:
    """Bytes and costs, [matrices, options]; absent options cost infinity and have the largest bytes."""

    bytes: NDArray[np.int64]
    costs: NDArray[np.float64]

    @classmethod
    def of(cls, options: Mapping[str, Sequence[Option]]) -> _Table:
        width = max(map(len, options.values()), default=0)
        n_bytes = np.full((len(options), width), np.iinfo(np.int64).max // 4, np.int64)
        costs = np.full((len(options), width), np.inf)
        for row, choices in enumerate(options.values()):
            n_bytes[row, : len(choices)] = [option.n_bytes for option in choices]
            costs[row, : len(choices)] = [option.cost for option in choices]
        return cls(n_bytes, costs)

    def bytes_of(self, chosen: NDArray[np.intp]) -> NDArray[np.int64]:
        return np.take_along_axis(self.bytes, chosen[:, None], axis=1)[:, 0]

    def costs_of(self, chosen: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.take_along_axis(self.costs, chosen[:, None], axis=1)[:, 0]


def _within(table: _Table, budget_bytes: int) -> NDArray[np.intp]:
    """The choices at the lowest price of a byte that keeps within the budget."""

    def at(price: float) -> NDArray[np.intp]:
        chosen: NDArray[np.intp] = np.argmin(table.costs + price * table.bytes, axis=1)
        return chosen

    if not table.bytes.size:
        return np.zeros(0, np.intp)
    low, high = np.log(_LOWEST_PRICE), np.log(_HIGHEST_PRICE)
    if int(table.bytes_of(at(_LOWEST_PRICE)).sum()) <= budget_bytes:
        return at(_LOWEST_PRICE)
    best: NDArray[np.intp] = np.argmin(table.bytes, axis=1)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chosen = at(float(np.exp(middle)))
        if int(table.bytes_of(chosen).sum()) <= budget_bytes:
            high, best = middle, chosen
        else:
            low = middle
    return best


def _fill(table: _Table, chosen: NDArray[np.intp], budget_bytes: int) -> NDArray[np.intp]:
    """Spends what is left: the change with the largest gain for its bytes, again and again, while one fits."""
    chosen = np.array(chosen, np.intp)
    while chosen.size:
        now = table.bytes_of(chosen)
        more = table.bytes - now[:, None]
        gain = table.costs_of(chosen)[:, None] - table.costs
        possible = (gain > 0) & (more <= budget_bytes - int(now.sum()))
        if not possible.any():
            break
        worth = np.where(possible, gain / np.maximum(more, 1), -np.inf)
        row, column = np.unravel_index(int(np.argmax(worth)), worth.shape)
        chosen[row] = column
    return chosen


def _trade(table: _Table, chosen: NDArray[np.intp], budget_bytes: int) -> NDArray[np.intp]:
    """Changes the types of two matrices at a time, the best pair first, while that gains."""
    chosen = chosen.copy()
    n, width = table.bytes.shape
    rows = np.repeat(np.arange(n), width)
    different = rows[:, None] != rows[None, :]
    for _ in range(_MOST_TRADES if n > 1 else 0):
        now = table.bytes_of(chosen)
        more = (table.bytes - now[:, None]).reshape(-1)
        gain = (table.costs_of(chosen)[:, None] - table.costs).reshape(-1)
        both = gain[:, None] + gain[None, :]
        possible = different & (more[:, None] + more[None, :] <= budget_bytes - int(now.sum()))
        first, second = divmod(int(np.argmax(np.where(possible, both, -np.inf))), len(gain))
        if not both[first, second] > _SMALLEST_GAIN * float(table.costs_of(chosen).sum()):
            break
        chosen[rows[first]], chosen[rows[second]] = first % width, second % width
    return chosen


def _mix(options: Mapping[str, Sequence[Option]], table: _Table, chosen: NDArray[np.intp]) -> Mix:
    costs = table.costs_of(chosen) if chosen.size else np.zeros(0)
    n_bytes = int(table.bytes_of(chosen).sum()) if chosen.size else 0
    types = {name: row[place].ggml_type for (name, row), place in zip(options.items(), chosen, strict=True)}
    return Mix(types, n_bytes, float(costs.sum()), dict(zip(options, map(float, costs), strict=True)))
