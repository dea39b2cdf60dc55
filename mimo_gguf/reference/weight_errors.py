"""How far a file's weights are from the original's, tensor by tensor, in bounded memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.reference.decode import Floats
from mimo_gguf.reference.model import EMBEDDING, HEAD, ReferenceModel

_PIECE_WEIGHTS: Final = 1 << 20  # compared at a time: 4 MiB of float32 for each model
_BLOCK: Final = 256  # weights in the largest block of any type

# A type with n bits per weight keeps about 6 dB per bit. Searching for scales, importance and error feedback move that
# by some dB, so only a tensor far below is said to be of other weights. Float types keep more than any of ours needs.
_DB_PER_BIT: Final = 4.5
_DB_OFF: Final = 6.0
_MOST_EXPECTED_DB: Final = 40.0
_TERNARY: Final = {GgmlType.TQ1_0, GgmlType.TQ2_0}  # they keep little of weights that were not trained for them
_TERNARY_DB: Final = 0.5


@dataclass(frozen=True, slots=True)
class TensorError:
    """The difference between one tensor of a file and the original's.

    Attributes:
        name: its GGUF name.
        ggml_type, original_type: its types in the file and in the original.
        n_weights: number of weights.
        is_vector: whether it is a vector of norm gains or biases, not a matrix.
        largest: the largest absolute difference.
        error_square, signal_square: sums of squares of the differences, and of the original's weights.
    """

    name: str
    ggml_type: GgmlType
    original_type: GgmlType
    n_weights: int
    is_vector: bool
    largest: float
    error_square: float
    signal_square: float

    @property
    def kind(self) -> str:
        """The name without the number of its block: `blk.7.attn_q.weight` -> `attn_q`; vectors are of one kind."""
        if self.is_vector:
            return "norms and biases"
        return re.sub(r"blk\.\d+\.", "", self.name).removesuffix(".weight")

    @property
    def rms(self) -> float:
        """The root of the mean square of the differences."""
        return math.sqrt(self.error_square / self.n_weights)

    @property
    def snr_db(self) -> float:
        """The signal-to-noise ratio in dB: infinite if nothing differs."""
        return snr_db(self.signal_square, self.error_square)

    @property
    def is_exact(self) -> bool:
        """Whether both hold the same values."""
        return self.largest == 0

    @property
    def is_foreign(self) -> bool:
        """Whether the difference is far beyond what the coarser of the two types loses: it is of other weights."""
        return not self.snr_db >= min(expected_snr_db(self.ggml_type), expected_snr_db(self.original_type))

    def as_json(self) -> dict[str, Any]:
        """The errors as a JSON document."""
        return {
            "name": self.name,
            "type": self.ggml_type.name,
            "original_type": self.original_type.name,
            "largest": self.largest,
            "rms": self.rms,
            "snr_db": self.snr_db,
        }


def snr_db(signal_square: float, error_square: float) -> float:
    """10 log10(signal / error) of sums of squares: infinite without an error, NaN if a sum is NaN."""
    if error_square == 0:
        return math.inf
    ratio = signal_square / error_square
    return 10 * math.log10(ratio) if ratio > 0 else ratio if math.isnan(ratio) else -math.inf


def expected_snr_db(ggml_type: GgmlType) -> float:
    """The least signal-to-noise ratio that a tensor of this type has if it was made from the original, in dB."""
    if ggml_type in _TERNARY:
        return _TERNARY_DB
    bits = 8 * row_bytes(ggml_type, _BLOCK) / _BLOCK
    return min(_MOST_EXPECTED_DB, _DB_PER_BIT * bits - _DB_OFF)


def counterpart(name: str, original: ReferenceModel) -> str | None:
    """The name of the original's tensor that a file's tensor was made from; None if there is none.

    An output matrix that is tied to the embedding may be stored in one of the two alone.
    """
    if original.has(name):
        return name
    return EMBEDDING if name == HEAD else None


def weight_errors(
    model: ReferenceModel, original: ReferenceModel, tensors: Sequence[TensorInfo]
) -> Iterator[TensorError]:
    """The errors of tensors, one after the other; a few megabytes of each model are in memory at a time.

    Args:
        tensors: those of `model` to compare; each has a `counterpart` of the same shape.

    Raises:
        CheckpointError, GgufError: the data of one ends early.
    """
    for info in tensors:
        other = counterpart(info.name, original)
        assert other is not None
        largest = error_square = signal_square = 0.0
        wanted = original.chunks(other, _PIECE_WEIGHTS)
        for (_, rows), (_, wanted_rows) in zip(model.chunks(info.name, _PIECE_WEIGHTS), wanted, strict=True):
            piece = _compare(rows, wanted_rows)
            largest = float(np.maximum(largest, piece[0]))  # unlike max, it keeps NaN
            error_square += piece[1]
            signal_square += piece[2]
        yield TensorError(
            name=info.name,
            ggml_type=info.ggml_type,
            original_type=original.info(other).ggml_type,
            n_weights=info.n_elements,
            is_vector=len(info.shape) == 1,
            largest=largest,
            error_square=error_square,
            signal_square=signal_square,
        )


def _compare(rows: Floats, wanted: Floats) -> tuple[float, float, float]:
    """The largest difference, and the sums of squares of differences and of what is wanted; `rows` is overwritten."""
    with np.errstate(invalid="ignore"):  # infinite weights
        np.subtract(rows, wanted, out=rows)
        return float(np.abs(rows).max()), _square_sum(rows), _square_sum(wanted)


def _square_sum(rows: Floats) -> float:
    """The sum of squares: of each row in float32, of the rows in float64."""
    return float(np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64))
