"""The libggml path against gguf-py's own quantisers and against ggml_quantize_chunk bound a second time."""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.quantization.kernels.libggml import QUANTIZABLE_TYPES, LibGgml, load_libggml
from mimo_gguf.quantization.kernels.probe import stored_as
from tests.quantization.kernels.data_sets import weights

ALL_TYPES = sorted(QUANTIZABLE_TYPES, key=int)
FLOATS = (GgmlType.F32, GgmlType.F16, GgmlType.BF16)

# gguf-py writes these itself, and promises ggml's bytes.
GGUF_PY_TYPES = [
    t for t in ALL_TYPES if t.name in {"F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"}
]

# Root mean square error after a round trip, relative to the weights', that N(0, 1) must stay below.
LARGEST_ERROR = {
    "F32": 0, "F16": 3e-4, "BF16": 2e-3, "Q8_0": 0.01, "Q6_K": 0.02, "Q5_K": 0.04, "Q5_1": 0.05, "Q5_0": 0.06,
    "Q4_K": 0.08, "Q4_1": 0.09, "Q4_0": 0.1, "IQ4_NL": 0.1, "IQ4_XS": 0.1, "Q3_K": 0.2, "IQ3_S": 0.2,
    "IQ3_XXS": 0.3, "MXFP4": 0.2, "NVFP4": 0.2, "Q2_K": 0.35, "IQ2_XXS": 0.45, "TQ1_0": 0.9, "TQ2_0": 0.9,
}  # fmt: skip

# Not IQ1 and the larger IQ2: libggml builds their tables for half a minute. Not Q1_0: gguf-py cannot read it.
ROUND_TRIP_TYPES = [t for t in ALL_TYPES if t.name in LARGEST_ERROR]


@pytest.fixture(scope="module")
def library() -> LibGgml:
    return load_libggml()


def importance_for(library: LibGgml, ggml_type: GgmlType, n_columns: int) -> NDArray[np.float32] | None:
    return np.ones(n_columns, np.float32) if library.requires_importance(ggml_type) else None


def quantized(
    library: LibGgml, rows: NDArray[Any], source_type: GgmlType, ggml_type: GgmlType, importance: Any = None
) -> NDArray[np.uint8]:
    out = np.full((len(rows), row_bytes(ggml_type, rows.shape[1])), 0x5A, np.uint8)
    library.quantize(rows, source_type, ggml_type, out, importance)
    return out


def quantize_chunk(
    library: LibGgml, rows: NDArray[np.float32], ggml_type: GgmlType, importance: Any
) -> NDArray[np.uint8]:
    """ggml_quantize_chunk on a whole f32 matrix, bound here and not there."""
    chunk = ctypes.CDLL(str(library.path)).ggml_quantize_chunk
    floats = ctypes.POINTER(ctypes.c_float)
    chunk.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, *[ctypes.c_int64] * 3, floats]
    chunk.restype = ctypes.c_size_t
    out = np.zeros((len(rows), row_bytes(ggml_type, rows.shape[1])), np.uint8)
    weight = None if importance is None else importance.ctypes.data_as(floats)
    written = chunk(
        int(ggml_type), rows.ctypes.data_as(floats), out.ctypes.data_as(ctypes.c_void_p), 0, *rows.shape, weight
    )
    assert written == out.nbytes
    return out


@pytest.mark.parametrize("name", ["normal", "student_t_2", "zeros", "tie_grid_halves"])
@pytest.mark.parametrize("ggml_type", GGUF_PY_TYPES, ids=lambda t: t.name)
def test_gguf_py_writes_the_same_bytes(library: LibGgml, ggml_type: GgmlType, name: str) -> None:
    rows = weights(name, 4, 512).clip(-60000, 60000)
    expected = gguf.quants.quantize(rows, ggml_type).view(np.uint8)
    np.testing.assert_array_equal(quantized(library, rows, GgmlType.F32, ggml_type), expected)


@pytest.mark.parametrize("ggml_type", ROUND_TRIP_TYPES, ids=lambda t: t.name)
def test_a_round_trip_through_gguf_py_stays_close(library: LibGgml, ggml_type: GgmlType) -> None:
    rows = weights("normal", 2, 512) * np.float32(50)
    blocks = quantized(library, rows, GgmlType.F32, ggml_type, importance_for(library, ggml_type, 512))
    back = gguf.quants.dequantize(blocks, ggml_type)
    error = np.sqrt(((back - rows) ** 2).mean() / (rows**2).mean())
    assert error <= LARGEST_ERROR[ggml_type.name]


@pytest.mark.parametrize("source_type", FLOATS, ids=lambda t: t.name)
def test_strips_equal_one_call_over_everything(library: LibGgml, source_type: GgmlType) -> None:
    rows = stored_as(weights("student_t_2", 300, 2048), source_type)
    f32 = gguf.quants.dequantize(rows.view(np.uint8), source_type).astype(np.float32)
    importance = np.random.default_rng(1).random(2048, np.float32)
    for ggml_type in (GgmlType.Q4_0, GgmlType.Q8_0, *FLOATS):
        for weight in (None, importance):
            np.testing.assert_array_equal(
                quantized(library, rows, source_type, ggml_type, weight),
                quantize_chunk(library, f32, ggml_type, weight),
            )


@pytest.mark.parametrize("ggml_type", ["Q2_K", "Q4_K", "Q6_K", "IQ4_XS", "Q5_1"])
def test_the_importance_row_reaches_every_strip(library: LibGgml, ggml_type: str) -> None:
    rows = weights("normal", 66, 4096)
    importance = np.random.default_rng(2).random(4096, np.float32) ** 4
    wanted = GgmlType[ggml_type]
    weighted = quantized(library, rows[[0, 65]], GgmlType.F32, wanted, importance)
    np.testing.assert_array_equal(weighted, quantize_chunk(library, rows[[0, 65]], wanted, importance))
    assert (weighted != quantized(library, rows[[0, 65]], GgmlType.F32, wanted)).any()


def test_a_missing_installation_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match="not installed") as caught:
        load_libggml.__wrapped__()
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("pip install")


def test_a_folder_without_the_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(BackendError, match="no libggml-base"):
        load_libggml.__wrapped__()
    for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll"):
        (tmp_path / name).write_bytes(b"not a library")
    with pytest.raises(BackendError, match="cannot be used"):
        load_libggml.__wrapped__()
