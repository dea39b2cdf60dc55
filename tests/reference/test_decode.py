"""Decoding against gguf-py, bit for bit, for every type that a file may hold."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.core.model_rules import MATRIX_TYPES
from mimo_gguf.reference.decode import Floats, decode_rows

N_COLUMNS = 512
UNKNOWN_TO_GGUF_PY = {GgmlType.Q1_0}


def random_rows(kind: GgmlType) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Rows of random bytes: every index, every sign, and every scale, even those that are not numbers."""
    rng = np.random.default_rng(int(kind))
    return rng.integers(0, 256, (40, row_bytes(kind, N_COLUMNS)), np.uint8)


def decoded(raw: np.ndarray[tuple[int, int], np.dtype[np.uint8]], kind: GgmlType) -> Floats:
    out = np.empty((len(raw), N_COLUMNS), np.float32)
    decode_rows(raw, kind, out)
    return out


@pytest.mark.parametrize("kind", sorted(MATRIX_TYPES - UNKNOWN_TO_GGUF_PY), ids=lambda kind: kind.name)
def test_every_type_is_decoded_as_gguf_py_does(kind: GgmlType) -> None:
    raw = random_rows(kind)
    out = decoded(raw, kind)
    assert np.isfinite(out).mean() > 0.5 and np.unique(out).size > 100
    with np.errstate(all="ignore"):
        assert np.array_equal(out, gguf.dequantize(raw, kind), equal_nan=True)


def test_a_type_that_gguf_py_does_not_know() -> None:
    """Q1_0: 128 weights, each the block's float16 scale with the sign of its bit."""
    raw = random_rows(GgmlType.Q1_0)
    blocks = raw.reshape(-1, 18)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    wanted = np.where(bits == 1, scales, -scales)
    assert np.array_equal(decoded(raw, GgmlType.Q1_0).reshape(-1, 128), wanted, equal_nan=True)


def test_a_type_that_libggml_does_not_decode_is_an_error() -> None:
    with pytest.raises(BackendError, match="has no dequantize_row_i32"):
        decode_rows(np.zeros((1, 4), np.uint8), GgmlType.I32, np.zeros((1, 1), np.float32))
