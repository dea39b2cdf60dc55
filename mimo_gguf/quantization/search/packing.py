"""From levels and integers to the bytes of ggml's blocks.

Layouts: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.quantization.search.kinds import CODEBOOK, kind_of

Bytes = NDArray[Any]  # uint8; numpy's types widen `codes & 3`
Numbers = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Encoded rows before packing; all numbers are float32, but for the levels.

    Attributes:
        levels: int8 [rows, blocks, weights of a block].
        d, dmin: [rows, blocks].
        scales, offsets: the integers of the sub-blocks, [rows, blocks, sub-blocks].
    """

    levels: NDArray[np.int8]
    d: Numbers
    dmin: Numbers
    scales: Numbers
    offsets: Numbers

    def values(self) -> Numbers:
        """The weights that the blocks stand for, [rows, columns], rounded as every decoder rounds them."""
        rows, blocks, n_subs = self.scales.shape
        scale = (self.d[:, :, None] * self.scales)[..., None]
        offset = (self.dmin[:, :, None] * self.offsets)[..., None]
        values: Numbers = self.levels.reshape(rows, blocks, n_subs, -1) * scale - offset
        return values.reshape(rows, -1)


def pack(ggml_type: GgmlType, blocks: Blocks) -> Bytes:
    """The bytes of rows of blocks: uint8 [rows, row bytes]."""
    kind = kind_of(ggml_type)
    levels = blocks.levels.view(np.uint8)
    codes = _PLACES[levels] if kind.codebook else levels - np.uint8(kind.low & 255)
    scales = (blocks.scales - np.float32(kind.scale_low)).astype(np.uint8)
    fields = _PACKERS[ggml_type](codes, scales, blocks.offsets.astype(np.uint8), blocks)
    return np.concatenate(fields, axis=-1).reshape(len(codes), -1)


_PLACES: Final = np.zeros(256, np.uint8)  # of the codebook's numbers; the negative ones are counted from the end
_PLACES[CODEBOOK.astype(np.int8).view(np.uint8)] = np.arange(len(CODEBOOK))

Packer = Callable[[Bytes, Bytes, Bytes, Blocks], list[Bytes]]
"""From codes (levels counted from 0), scales counted from the lowest, offsets and the floats to a block's fields."""


def _half(values: Numbers) -> Bytes:
    return np.ascontiguousarray(values.astype("<f2"))[..., None].view(np.uint8)


def _bits(parts: Bytes, width: int) -> Bytes:
    """Joins the last axis but one: part i is shifted by i * width bits."""
    joined = np.zeros_like(parts[..., 0, :])
    for i in range(parts.shape[-2]):
        joined |= parts[..., i, :] << np.uint8(i * width)
    return joined


def _grouped(codes: Bytes, *shape: int) -> Bytes:
    return codes.reshape(*codes.shape[:2], *shape)


def _flat(parts: Bytes) -> Bytes:
    return parts.reshape(*parts.shape[:2], -1)


def _two_bits(codes: Bytes) -> Bytes:
    """Two bits of each of 256 codes: in each half of the block, byte i holds those of i, i + 32, i + 64, i + 96."""
    return _flat(_bits(_grouped(codes & 3, 2, 4, 32), 2))


def _q2_k(codes: Bytes, scales: Bytes, offsets: Bytes, blocks: Blocks) -> list[Bytes]:
    return [scales | offsets << 4, _two_bits(codes), _half(blocks.d), _half(blocks.dmin)]


def _q3_k(codes: Bytes, scales: Bytes, offsets: Bytes, blocks: Blocks) -> list[Bytes]:
    high = _bits(_grouped(codes >> 2, 8, 32), 1)
    low_scales = _bits(_grouped(scales & 15, 2, 8), 4)
    high_scales = _bits(_grouped(scales >> 4, 4, 4), 2)
    return [high, _two_bits(codes), low_scales, high_scales, _half(blocks.d)]


def _six_bits(scales: Bytes, offsets: Bytes) -> Bytes:
    """Eight scales and eight offsets of six bits in twelve bytes."""
    a, b, c, d = scales[..., :4], scales[..., 4:], offsets[..., :4], offsets[..., 4:]
    return np.concatenate([a | b >> 4 << 6, c | d >> 4 << 6, (b & 15) | d << 4], axis=-1)


def _nibbles(codes: Bytes) -> Bytes:
    return _flat(_bits(_grouped(codes & 15, 4, 2, 32), 4))


def _q4_k(codes: Bytes, scales: Bytes, offsets: Bytes, blocks: Blocks) -> list[Bytes]:
    return [_half(blocks.d), _half(blocks.dmin), _six_bits(scales, offsets), _nibbles(codes)]


def _q5_k(codes: Bytes, scales: Bytes, offsets: Bytes, blocks: Blocks) -> list[Bytes]:
    high = _bits(_grouped(codes >> 4, 8, 32), 1)
    return [_half(blocks.d), _half(blocks.dmin), _six_bits(scales, offsets), high, _nibbles(codes)]


def _q6_k(codes: Bytes, scales: Bytes, offsets: Bytes, blocks: Blocks) -> list[Bytes]:
    quarters = _grouped(codes, 2, 4, 32)
    low = quarters[..., :2, :] & 15 | quarters[..., 2:, :] << 4
    return [_flat(low), _flat(_bits(quarters >> 4, 2)), scales - np.uint8(128), _half(blocks.d)]


def _iq4_xs(codes: Bytes, scales: Bytes, offsets: Bytes, blocks: Blocks) -> list[Bytes]:
    high = _bits((scales >> 4).reshape(*scales.shape[:2], 2, 4).swapaxes(-1, -2), 2)
    low = _bits((scales & 15).reshape(*scales.shape[:2], 4, 2).swapaxes(-1, -2), 4)
    return [_half(blocks.d), high, low, _flat(_bits(_grouped(codes, 8, 2, 16), 4))]


def _small_nibbles(codes: Bytes) -> Bytes:
    return _bits(_grouped(codes & 15, 2, 16), 4)


def _q4_0(codes: Bytes, scales: Bytes, offsets: Bytes, blocks: Blocks) -> list[Bytes]:
    return [_half(blocks.d), _small_nibbles(codes)]


def _q5_0(codes: Bytes, scales: Bytes, offsets: Bytes, blocks: Blocks) -> list[Bytes]:
    high = np.packbits(codes >> 4, axis=-1, bitorder="little")
    return [_half(blocks.d), high, _small_nibbles(codes)]


def _q8_0(codes: Bytes, scales: Bytes, offsets: Bytes, blocks: Blocks) -> list[Bytes]:
    return [_half(blocks.d), codes - np.uint8(127)]


_PACKERS: Final[Mapping[GgmlType, Packer]] = {
    GgmlType.Q2_K: _q2_k,
    GgmlType.Q3_K: _q3_k,
    GgmlType.Q4_K: _q4_k,
    GgmlType.Q5_K: _q5_k,
    GgmlType.Q6_K: _q6_k,
    GgmlType.IQ4_XS: _iq4_xs,
    GgmlType.IQ4_NL: _q4_0,
    GgmlType.Q4_0: _q4_0,
    GgmlType.Q5_0: _q5_0,
    GgmlType.Q8_0: _q8_0,
}
