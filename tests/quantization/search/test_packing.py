"""Packed blocks mean what they were made of: gguf-py decodes them to the same floats."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.quants import dequantize

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.quantization.search.kinds import CODEBOOK, KINDS
from mimo_gguf.quantization.search.packing import Blocks, pack

N_ROWS, N_BLOCKS = 3, 5


@pytest.mark.parametrize("ggml_type", KINDS, ids=lambda t: t.name)
def test_decoders_read_the_same_values(ggml_type: GgmlType) -> None:
    kind, rng = KINDS[ggml_type], np.random.default_rng(int(ggml_type))
    shape, n_subs = (N_ROWS, N_BLOCKS), kind.block // kind.sub

    def integers(low: int, high: int, *sizes: int) -> np.ndarray:
        drawn = rng.integers(low, high + 1, (*shape, *sizes))
        drawn[0, 0], drawn[0, 1] = low, high
        return drawn.astype(np.float32)

    def halves(scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float16).astype(np.float32)

    levels = integers(kind.low, kind.high, kind.block)
    blocks = Blocks(
        levels=(CODEBOOK[levels.astype(int)] if kind.codebook else levels).astype(np.int8),
        d=halves(0.01),
        dmin=np.abs(halves(0.001)) if kind.offset_high else np.zeros(shape, np.float32),
        scales=integers(kind.scale_low, kind.scale_high, n_subs),
        offsets=integers(0, kind.offset_high, n_subs),
    )
    np.testing.assert_array_equal(dequantize(pack(ggml_type, blocks), ggml_type), blocks.values())
