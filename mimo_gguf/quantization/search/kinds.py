"""The block types that the search can write, as a table: how a block's values are made of its integers.

A value is `scale * level - offset`. The levels are integers from `low` to `high`, or the codebook's sixteen numbers.
In a super-block of 256 the scale is `d` times an integer of the sub-block, the offset `dmin` times another. In a
block of 32 there is only `d`.

Layouts: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import UsageError, WeightsError
from mimo_gguf.core.ggml_types import GgmlType

PANEL: Final = 256
"""The columns that are searched at a time: a super-block, or eight blocks of 32."""

LARGEST_HALF: Final = 65504

CODEBOOK: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # kvalues_iq4nl in ggml-common.h


@dataclass(frozen=True, slots=True)
class Kind:
    """How the values of one block type are made.

    Attributes:
        block: weights with a `d` of their own.
        sub: weights with a scale of their own.
        low, high: the smallest and the largest level; of a codebook, its first and last place.
        scale_low, scale_high: the integers that a sub-block's scale may be; 1 and 1 if `d` is the scale.
        offset_high: the largest integer of a sub-block's offset; 0 if there is no offset.
        codebook: whether a level is one of `CODEBOOK`.
    """

    block: int
    sub: int
    low: int
    high: int
    scale_low: int = 1
    scale_high: int = 1
    offset_high: int = 0
    codebook: bool = False

    @property
    def largest(self) -> float:
        """The largest magnitude that a block can hold whatever its sign."""
        level = int(CODEBOOK.max()) if self.codebook else self.high
        return float(LARGEST_HALF * (self.offset_high or level * self.scale_high))

    @property
    def blocks(self) -> int:
        """Blocks of a panel."""
        return PANEL // self.block


KINDS: Final[Mapping[GgmlType, Kind]] = {
    GgmlType.Q2_K: Kind(256, 16, 0, 3, 0, 15, 15),
    GgmlType.Q3_K: Kind(256, 16, -4, 3, -32, 31),
    GgmlType.Q4_K: Kind(256, 32, 0, 15, 0, 63, 63),
    GgmlType.Q5_K: Kind(256, 32, 0, 31, 0, 63, 63),
    GgmlType.Q6_K: Kind(256, 16, -32, 31, -128, 127),
    GgmlType.IQ4_XS: Kind(256, 32, 0, 15, -32, 31, codebook=True),
    GgmlType.IQ4_NL: Kind(32, 32, 0, 15, codebook=True),
    GgmlType.Q4_0: Kind(32, 32, -8, 7),
    GgmlType.Q5_0: Kind(32, 32, -16, 15),
    GgmlType.Q8_0: Kind(32, 32, -127, 127),
}


def kind_of(ggml_type: GgmlType) -> Kind:
    """The kind of a block type.

    Raises:
        UsageError: the search cannot write the type.
    """
    try:
        return KINDS[ggml_type]
    except KeyError:
        known = ", ".join(sorted(known.name for known in KINDS))
        raise UsageError(f"there is no search for {ggml_type.name}", hint=f"choose one of {known}") from None


def check_held(weights: NDArray[np.float32], kind: Kind, name: str) -> None:
    """Raises WeightsError if a weight is NaN, infinite, or larger than any block of this kind can hold."""
    if not weights.size:
        return
    largest = np.maximum(weights.max(), -weights.min())  # NaN if one is
    if not np.isfinite(largest):
        raise WeightsError("the weights of a matrix hold NaN or infinity", hint="download the checkpoint again")
    if largest > kind.largest:
        raise WeightsError(f"a weight of {largest:.3g} is too large for {name}", hint="keep this matrix in BF16")
