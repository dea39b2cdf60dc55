"""The cost of writing a matrix in a type: the divergence (KL, nats per token) that it is predicted to add.

With y = W x, an error dW changes the output by dW x. To second order that adds to the divergence

    1/2 sum_i E[g_i^2] E[(dw_i . x)^2]

where g is the gradient of the log-likelihood at y, and rows and inputs are taken as independent (K-FAC: Martens and
Grosse 2015, arXiv 1503.05671). dW is a measured error: some rows are encoded with importance weights and decoded. Bits
would not do: a matrix with huge activations may have a larger error in Q6_K than in Q5_K.

The rows are measured as llama.cpp's own encoder leaves them, and then scaled by what error feedback leaves of such an
error. These shares were measured on held-out text, on 233 matrices of a model of 135 M with 12 to 28 tokens a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType, block_size, row_bytes
from mimo_gguf.quantization.kernels import kernel_for
from mimo_gguf.reference.decode import decode_rows

Floats = NDArray[np.float32]

# The share of plain encoding's error that error feedback leaves; 1 for types without it.
FEEDBACK_LEAVES: Final[Mapping[GgmlType, float]] = {
    GgmlType.Q2_K: 0.32,
    GgmlType.Q3_K: 0.27,
    GgmlType.IQ4_XS: 0.30,
    GgmlType.Q4_K: 0.31,
    GgmlType.Q5_K: 0.31,
    GgmlType.Q6_K: 0.25,
    GgmlType.Q8_0: 0.19,
    GgmlType.Q4_0: 0.27,
    GgmlType.IQ4_NL: 0.29,
    GgmlType.Q5_0: 0.28,
}
DOWN_LEAVES: Final = 1.7  # times as much is left of the error of ffn_down, whose columns are less alike
_SMALLEST_IMPORTANCE: Final = 1e-30


@dataclass(frozen=True, slots=True)
class RowSample:
    """Rows of a matrix to measure: the most sensitive ones, and some that stand for all others."""

    top: NDArray[np.intp]
    rest: NDArray[np.intp]
    n_others: int

    @property
    def rows(self) -> NDArray[np.intp]:
        """All rows of the sample."""
        return np.concatenate([self.top, self.rest])

    def total(self, values: NDArray[np.float64]) -> float:
        """The sum over all rows of the matrix, estimated from the values [rows] of the sample."""
        rest = values[len(self.top) :]
        return float(values[: len(self.top)].sum() + (rest.mean() * self.n_others if len(rest) else 0.0))


def sample_rows(sensitivity: NDArray[np.floating], n_top: int, n_rest: int, seed: int) -> RowSample:
    """Chooses rows to measure, by the sensitivity [rows] of each."""
    order = np.argsort(-sensitivity, kind="stable")
    top, others = order[:n_top], order[n_top:]
    rest = np.random.default_rng(seed).permutation(others)[:n_rest]
    return RowSample(np.sort(top), np.sort(rest), len(others))


def encode_plainly(rows: Floats, ggml_type: GgmlType, importance: Floats | None) -> NDArray[np.uint8]:
    """Encodes rows [n, columns] as llama.cpp does, with importance weights [columns] or without; uint8 [n, bytes]."""
    if importance is not None and not (importance > _SMALLEST_IMPORTANCE).any():
        importance = None
    out = np.empty((len(rows), row_bytes(ggml_type, rows.shape[1])), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    kernel_for(ggml_type, GgmlType.F32, weights is not None)(np.ascontiguousarray(rows), out, weights)
    return out


def decode(data: NDArray[np.uint8], ggml_type: GgmlType, n_columns: int) -> Floats:
    """The weights that encoded rows stand for, float32 [n, columns]."""
    out = np.empty((len(data), n_columns), np.float32)
    decode_rows(data, ggml_type, out)
    return out


def matrix_costs(
    weights: Floats, inputs: Floats, sensitivity: NDArray[np.floating], sample: RowSample, types: Sequence[GgmlType]
) -> dict[GgmlType, float]:
    """The cost of a matrix by type, as plain importance encoding leaves it.

    Args:
        weights: the rows of `sample`, float32 [sampled, columns].
        inputs: rows that the matrix reads, float32 [tokens, columns].
        sensitivity: E[g_i^2] for every row of the matrix.
    """
    importance = (np.einsum("ij,ij->j", inputs, inputs, dtype=np.float64) / len(inputs)).astype(np.float32)
    weight = sensitivity[sample.rows].astype(np.float64)
    costs = {}
    for ggml_type in types:
        if weights.shape[1] % block_size(ggml_type):
            continue
        difference = decode(encode_plainly(weights, ggml_type, importance), ggml_type, weights.shape[1]) - weights
        error = np.mean(np.square(inputs @ difference.T), axis=0, dtype=np.float64)
        costs[ggml_type] = 0.5 * sample.total(weight * error)
    return costs


def embedding_costs(
    rows: Floats, sensitivity: NDArray[np.floating], types: Sequence[GgmlType]
) -> dict[GgmlType, float]:
    """The cost of the embedding by type, encoded without importance weights.

    Args:
        rows: its rows for the tokens of a text, so that a frequent token counts as often as it occurs.
        sensitivity: E[g_j^2] for every column.
    """
    costs = {}
    for ggml_type in types:
        if rows.shape[1] % block_size(ggml_type) == 0:
            difference = decode(encode_plainly(rows, ggml_type, None), ggml_type, rows.shape[1]) - rows
            costs[ggml_type] = 0.5 * float(np.mean(np.square(difference, dtype=np.float64) @ sensitivity))
    return costs


def with_feedback(name: str, costs: Mapping[GgmlType, float]) -> dict[GgmlType, float]:
    """The costs of a matrix that error feedback leaves."""
    more = DOWN_LEAVES if name.endswith(".ffn_down.weight") else 1.0
    return {ggml_type: cost * min(1.0, more * FEEDBACK_LEAVES.get(ggml_type, 1.0)) for ggml_type, cost in costs.items()}
