"""Our kernels against libggml, byte for byte."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType, block_size, row_bytes
from mimo_gguf.quantization.kernels.libggml import load_libggml
from mimo_gguf.quantization.kernels.probe import stored_as
from mimo_gguf.quantization.kernels.registry import Kernel, numba_run
from tests.quantization.kernels.data_sets import DATA_SETS, weights

pytestmark = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "AMD64"}, reason="only x86 builds of libggml are known not to fuse operations"
)

BLOCK_TYPES = (GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K)
FLOATS = (GgmlType.F32, GgmlType.F16, GgmlType.BF16)
CASTS = [
    (GgmlType.F16, GgmlType.F32),
    (GgmlType.F16, GgmlType.BF16),
    (GgmlType.BF16, GgmlType.F32),
    (GgmlType.BF16, GgmlType.F16),
]
PAIRS = [*((t, s) for t in BLOCK_TYPES for s in FLOATS), *CASTS]


def ours(ggml_type: GgmlType, source_type: GgmlType, *, with_importance: bool = False) -> Kernel:
    """Our kernel itself, whatever the probe says: a broken one must fail here, not fall back."""
    name, note, run = numba_run(ggml_type, source_type)
    assert run is not None, note
    return Kernel(ggml_type, source_type, with_importance, name, note, run)


def quantized(kernel: Kernel, rows: NDArray[Any], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    out = np.full((len(rows), row_bytes(kernel.ggml_type, rows.shape[1])), 0xA5, np.uint8)
    kernel(rows, out, importance)
    return out


def reference(kernel: Kernel, rows: NDArray[Any], importance: NDArray[np.float32] | None = None) -> NDArray[np.uint8]:
    out = np.full((len(rows), row_bytes(kernel.ggml_type, rows.shape[1])), 0x5A, np.uint8)
    load_libggml().quantize(rows, kernel.source_type, kernel.ggml_type, out, importance)
    return out


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize(("ggml_type", "source_type"), PAIRS, ids=lambda t: t.name)
def test_every_byte_is_libggmls(ggml_type: GgmlType, source_type: GgmlType, name: str) -> None:
    kernel = ours(ggml_type, source_type)
    rows = stored_as(weights(name, 9, 1280), source_type)
    np.testing.assert_array_equal(quantized(kernel, rows), reference(kernel, rows))


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("ggml_type", BLOCK_TYPES, ids=lambda t: t.name)
def test_every_byte_is_libggmls_with_importance(ggml_type: GgmlType, name: str) -> None:
    kernel = ours(ggml_type, GgmlType.BF16, with_importance=True)
    rows = stored_as(weights(name, 9, 1280), GgmlType.BF16)
    for importance in importances(1280):
        np.testing.assert_array_equal(quantized(kernel, rows, importance), reference(kernel, rows, importance))


def importances(n_columns: int) -> Iterator[NDArray[np.float32]]:
    """Rows as matrices have them, and rows as they should not be: without entries, all alike, near the ends of f32."""
    rng, ramp = np.random.default_rng(7), np.arange(n_columns)
    skewed = rng.random(n_columns) ** 4
    spread = np.exp(3 * rng.standard_normal(n_columns))
    gaps = np.where(ramp // 32 % 2, 0, skewed)
    lonely = ramp % 97 == 0
    for row in (skewed, spread, gaps, lonely, 0 * ramp, 0 * ramp + 1, skewed * 1e-30, skewed * 1e30):
        yield row.astype(np.float32)


@pytest.mark.parametrize("n_columns", [256, 512, 768, 4096, 11008])
@pytest.mark.parametrize("ggml_type", BLOCK_TYPES, ids=lambda t: t.name)
def test_rows_that_do_not_fill_a_tile(ggml_type: GgmlType, n_columns: int) -> None:
    kernel = ours(ggml_type, GgmlType.BF16)
    n_most = 33 if n_columns < 1000 else 3
    rows = stored_as(weights("student_t_2", n_most, n_columns), GgmlType.BF16)
    whole = reference(kernel, rows)
    for n_rows in range(n_most + 1):
        np.testing.assert_array_equal(quantized(kernel, rows[:n_rows]), whole[:n_rows])
    weighted, importance = replace(kernel, with_importance=True), next(importances(n_columns))
    whole = reference(weighted, rows, importance)
    for n_rows in range(n_most + 1):
        np.testing.assert_array_equal(quantized(weighted, rows[:n_rows], importance), whole[:n_rows])


@pytest.mark.parametrize("n_columns", [32, 96, 544])
def test_q8_0_rows_of_any_whole_number_of_blocks(n_columns: int) -> None:
    kernel = ours(GgmlType.Q8_0, GgmlType.BF16)
    for n_rows in (1, 2, 5, 17):
        rows = stored_as(weights("student_t_2", n_rows, n_columns), GgmlType.BF16)
        np.testing.assert_array_equal(quantized(kernel, rows), reference(kernel, rows))


@pytest.mark.parametrize(("ggml_type", "source_type"), CASTS, ids=lambda t: t.name)
def test_casts_of_any_number_of_columns(ggml_type: GgmlType, source_type: GgmlType) -> None:
    kernel = ours(ggml_type, source_type)
    for n_columns in (1, 2, 15, 16, 17, 31, 33, 1000):
        rows = stored_as(np.random.default_rng(n_columns).standard_normal((3, n_columns), np.float32), source_type)
        np.testing.assert_array_equal(quantized(kernel, rows), reference(kernel, rows))


@pytest.mark.parametrize(("ggml_type", "source_type"), [CASTS[1], CASTS[3]], ids=lambda t: t.name)
def test_every_16_bit_pattern_is_cast_as_libggml_does(ggml_type: GgmlType, source_type: GgmlType) -> None:
    kernel = ours(ggml_type, source_type)
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    infinity = 0x7C00 if source_type is GgmlType.F16 else 0x7F80
    bits = np.where((bits & 0x7FFF) > infinity, bits & 0x8000, bits).astype(np.uint16)  # NaN is refused before
    np.testing.assert_array_equal(quantized(kernel, bits), reference(kernel, bits))


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-126, 2.0**-149, 65504.0, 1e-15, 3.0e38, -3.0e38])


@pytest.mark.parametrize("ggml_type", BLOCK_TYPES, ids=lambda t: t.name)
def test_any_finite_weights(ggml_type: GgmlType) -> None:
    kernel = ours(ggml_type, GgmlType.F32)

    @settings(max_examples=60, deadline=None)
    @given(
        rows=hnp.arrays(np.float32, (1, 512), elements=finite | special, fill=finite),
        scale=st.sampled_from([1.0, 1e-3, 1e-20, 1e-38]),
        fraction=st.floats(0, 1),
    )
    def check(rows: NDArray[np.float32], scale: float, fraction: float) -> None:
        rows = (rows * np.float32(scale)).astype(np.float32)
        rows[:, int(512 * fraction) :] = np.sign(rows[:, int(512 * fraction) :]) * np.float32(scale)
        np.testing.assert_array_equal(quantized(kernel, rows), reference(kernel, rows))

    check()


@pytest.mark.parametrize("ggml_type", BLOCK_TYPES, ids=lambda t: t.name)
def test_threads_do_not_disturb_each_other(ggml_type: GgmlType) -> None:
    kernel = ours(ggml_type, GgmlType.BF16)
    chunks = [stored_as(weights("student_t_2", 4, 1024, seed), GgmlType.BF16) for seed in range(24)]
    expected = [reference(kernel, chunk) for chunk in chunks]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(lambda rows: quantized(kernel, rows), chunks), expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("ggml_type", BLOCK_TYPES, ids=lambda t: t.name)
def test_nothing_is_written_outside_the_output(ggml_type: GgmlType) -> None:
    kernel = ours(ggml_type, GgmlType.BF16)
    rows = stored_as(weights("normal", 3, 256), GgmlType.BF16)
    n_bytes = row_bytes(ggml_type, 256)
    buffer = np.full(5 * n_bytes, 0xEE, np.uint8)
    kernel(rows, buffer[n_bytes : 4 * n_bytes].reshape(3, n_bytes))
    assert (buffer[:n_bytes] == 0xEE).all()
    assert (buffer[4 * n_bytes :] == 0xEE).all()


def test_a_source_at_an_odd_address() -> None:
    kernel = ours(GgmlType.Q4_K, GgmlType.BF16)
    rows = stored_as(weights("normal", 2, 512), GgmlType.BF16)
    buffer = np.empty(rows.nbytes + 1, np.uint8)
    buffer[1:] = rows.view(np.uint8).reshape(-1)
    shifted = buffer[1:].reshape(2, -1)
    np.testing.assert_array_equal(quantized_bytes(kernel, shifted), reference(kernel, rows))


def quantized_bytes(kernel: Kernel, raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As the writer calls it: the source as plain bytes."""
    n_columns = raw.shape[1] // 2
    assert n_columns % block_size(kernel.ggml_type) == 0
    out = np.empty((len(raw), row_bytes(kernel.ggml_type, n_columns)), np.uint8)
    kernel(raw, out)
    return out
