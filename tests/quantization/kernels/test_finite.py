"""Finding the first weight that cannot be quantised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.quantization.kernels import finite
from mimo_gguf.quantization.kernels.finite import first_f16_overflow, first_nonfinite
from mimo_gguf.quantization.kernels.probe import stored_as

FLOATS = ("F32", "F16", "BF16")
NONFINITE = {"F32": (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF)}
NONFINITE["F16"] = (0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF)
NONFINITE["BF16"] = (0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF)


@pytest.fixture(params=["numba", "numpy"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(finite, "_skip", lambda *_: 0)


def as_bits(rows: NDArray[Any]) -> NDArray[Any]:
    return rows.view(np.uint32 if rows.itemsize == 4 else np.uint16)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("source_type", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (7, 512), (40, 4096)])
def test_the_first_of_several_is_found(source_type: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    clean = stored_as(rng.uniform(-65504, 65504, shape).astype(np.float32), GgmlType[source_type])
    assert first_nonfinite(clean, GgmlType[source_type]) is None
    for bits in NONFINITE[source_type]:
        rows = clean.copy()
        places = np.sort(rng.choice(rows.size, min(3, rows.size), replace=False))
        as_bits(rows).reshape(-1)[places] = bits
        first = divmod(int(places[0]), shape[1])
        assert first_nonfinite(rows, GgmlType[source_type]) == first
        assert first_nonfinite(rows.view(np.uint8), GgmlType[source_type]) == first
        assert first_f16_overflow(rows, GgmlType[source_type]) == first


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("source_type", ["F16", "BF16"])
def test_every_16_bit_pattern_is_judged_as_numpy_judges_it(source_type: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = bits.view(np.float16).astype(np.float32) if source_type == "F16" else None
    if wide is None:
        wide = (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        overflows = ~np.isfinite(wide.astype(np.float16))
    for pattern in range(0, 1 << 16, 97):
        rows = np.zeros((2, 512), np.uint16)
        rows[1, 3] = bits[pattern]
        expected = None if np.isfinite(wide[pattern]) else (1, 3)
        assert first_nonfinite(rows, GgmlType[source_type]) == expected
        assert first_f16_overflow(rows, GgmlType[source_type]) == ((1, 3) if overflows[pattern] else None)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("value", "fits"), [(65504.0, True), (65519.99, True), (-65519.99, True), (65520.0, False), (-65520.0, False)]
)
def test_f16_overflow_starts_where_rounding_reaches_infinity(value: float, fits: bool) -> None:
    rows = np.zeros((2, 600), np.float32)
    rows[0, 599] = value
    with np.errstate(over="ignore"):
        assert bool(np.isfinite(rows.astype(np.float16)).all()) is fits
    assert first_f16_overflow(rows, GgmlType.F32) == (None if fits else (0, 599))
    assert first_nonfinite(rows, GgmlType.F32) is None


def test_no_weights_are_fine() -> None:
    assert first_nonfinite(np.empty((0, 32), np.float32), GgmlType.F32) is None
