"""Checks that quantized rows hold only finite scales: the one thing that can be wrong with a block on its own.

Layouts: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-common.h (the half-precision fields d, m,
dmin of each block); what counts as invalid is as in ggml_validate_row_data of ggml/src/ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from gguf import GGML_QUANT_SIZES
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_source import Bytes

# Byte offsets of the f16 fields in a block.
_F16_FIELDS: Final[Mapping[GgmlType, tuple[int, ...]]] = {
    GgmlType.Q4_0: (0,),
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q5_0: (0,),
    GgmlType.Q5_1: (0, 2),
    GgmlType.Q8_0: (0,),
    GgmlType.Q2_K: (80, 82),
    GgmlType.Q3_K: (108,),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q5_K: (0, 2),
    GgmlType.Q6_K: (208,),
    GgmlType.IQ1_S: (0,),
    GgmlType.IQ2_XXS: (0,),
    GgmlType.IQ2_XS: (0,),
    GgmlType.IQ2_S: (0,),
    GgmlType.IQ3_XXS: (0,),
    GgmlType.IQ3_S: (0,),
    GgmlType.IQ4_NL: (0,),
    GgmlType.IQ4_XS: (0,),
    GgmlType.TQ1_0: (52,),
    GgmlType.TQ2_0: (64,),
}
_IQ1_M_SCALES: Final = 48  # four 16-bit words whose top nibbles make the f16 scale
_FLOAT_BITS: Final = {
    GgmlType.F32: (np.uint32, 0x7F800000),
    GgmlType.F16: (np.uint16, 0x7C00),
    GgmlType.BF16: (np.uint16, 0x7F80),
}
_STRIP_BYTES: Final = 1 << 20


def first_bad_row(rows: Bytes, ggml_type: GgmlType) -> int | None:
    """The first row with an Inf or NaN: among its weights (float types) or its blocks' scales.

    Args:
        rows: contiguous uint8, rows x row bytes.

    Returns:
        The number of the row; None if all is finite, or if the type has no such field (MXFP4 and other types without
        f16 scales).
    """
    step = max(1, _STRIP_BYTES // max(1, rows.shape[1]))
    for first in range(0, rows.shape[0], step):
        bad = _bad_rows(rows[first : first + step], ggml_type)
        if bad.any():
            return first + int(bad.argmax())
    return None


def are_zeros(rows: Bytes, ggml_type: GgmlType) -> bool:
    """Whether every block has the scale zero, so that all its weights are zeros. False for types without f16 scales."""
    fields = _F16_FIELDS.get(ggml_type, ())
    blocks = rows.reshape(-1, GGML_QUANT_SIZES[ggml_type][1])
    return bool(fields) and not any(blocks[:, at].any() or (blocks[:, at + 1] & 0x7F).any() for at in fields)


def _bad_rows(rows: Bytes, ggml_type: GgmlType) -> NDArray[np.bool_]:
    if ggml_type in _FLOAT_BITS:
        dtype, infinity = _FLOAT_BITS[ggml_type]
        bits = rows.view(dtype)
        reaching: NDArray[np.bool_] = (bits & dtype(infinity)) == infinity
        return np.asarray(reaching.any(axis=1), np.bool_)
    blocks = rows.reshape(rows.shape[0], -1, GGML_QUANT_SIZES[ggml_type][1])
    bad = np.zeros(rows.shape[0], np.bool_)
    for offset in _F16_FIELDS.get(ggml_type, ()):
        high_bytes = blocks[:, :, offset + 1]
        bad |= ((high_bytes & 0x7C) == 0x7C).any(axis=1)
    if ggml_type is GgmlType.IQ1_M:
        # The scale's bits 15-12 are the top nibble of the last word, 11-8 that of the third: exponent 10-14.
        last, third = blocks[:, :, _IQ1_M_SCALES + 7] >> 4, blocks[:, :, _IQ1_M_SCALES + 5] >> 4
        bad |= (((last & 7) == 7) & ((third & 0xC) == 0xC)).any(axis=1)
    return bad
