"""libggml's own block quantisers, through ctypes: the reference for every type, and the fallback.

The library is opened by path inside the installed llama_cpp package; llama_cpp itself is not imported, because that
loads every backend. ctypes releases the GIL while a call runs.

Source: ggml_quantize_chunk in
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml.c
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.version import REINSTALL_LLAMA

# What ggml_quantize_chunk can write; for any other type it aborts the process.
QUANTIZABLE_TYPES: Final = frozenset(
    {
        GgmlType.F32, GgmlType.F16, GgmlType.BF16,
        GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q5_1, GgmlType.Q8_0,
        GgmlType.Q2_K, GgmlType.Q3_K, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K,
        GgmlType.IQ1_S, GgmlType.IQ1_M, GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ2_S,
        GgmlType.IQ3_XXS, GgmlType.IQ3_S, GgmlType.IQ4_NL, GgmlType.IQ4_XS,
        GgmlType.TQ1_0, GgmlType.TQ2_0, GgmlType.MXFP4, GgmlType.NVFP4, GgmlType.Q1_0,
    }
)  # fmt: skip

# Weights widened to f32 at a time: 1 MiB of scratch per thread stays in the second-level cache.
_STRIP_WEIGHTS: Final = 1 << 18

_scratch = threading.local()


@dataclass(frozen=True, slots=True)
class LibGgml:
    """The functions of libggml-base that quantisation needs."""

    path: Path
    version: str
    _quantize_chunk: Any
    _requires_imatrix: Any
    _widen: dict[GgmlType, Any]

    def requires_importance(self, ggml_type: GgmlType) -> bool:
        """Whether this type cannot be written without an importance matrix (libggml would abort)."""
        return bool(self._requires_imatrix(int(ggml_type)))

    def quantize(
        self,
        src: NDArray[Any],
        source_type: GgmlType,
        ggml_type: GgmlType,
        out: NDArray[np.uint8],
        importance: NDArray[np.float32] | None,
    ) -> None:
        """Quantises rows x cols of `src` into `out`, widening 16-bit sources strip by strip into thread scratch.

        The first call for an IQ type builds libggml's look-up tables (seconds, under libggml's own lock).
        """
        n_rows, n_columns = src.shape
        if ggml_type is GgmlType.F32 and source_type in self._widen:
            self._widen[source_type](src.ctypes.data, out.ctypes.data, src.size)
            return
        weights = None if importance is None else ctypes.c_void_p(importance.ctypes.data)
        strip_rows = max(1, _STRIP_WEIGHTS // max(1, n_columns))
        src_at, src_stride = src.ctypes.data, src.strides[0]
        out_at, out_stride = out.ctypes.data, out.strides[0]
        for first in range(0, n_rows, strip_rows):
            n = min(strip_rows, n_rows - first)
            f32_at = self._widened(src_at + first * src_stride, source_type, n * n_columns)
            self._quantize_chunk(int(ggml_type), f32_at, out_at + first * out_stride, 0, n, n_columns, weights)

    def _widened(self, address: int, source_type: GgmlType, n_weights: int) -> int:
        if source_type is GgmlType.F32:
            return address
        scratch = _thread_scratch(n_weights)
        self._widen[source_type](address, scratch.ctypes.data, n_weights)
        return int(scratch.ctypes.data)


def _thread_scratch(n_weights: int) -> NDArray[np.float32]:
    scratch: NDArray[np.float32] | None = getattr(_scratch, "f32", None)
    if scratch is None or scratch.size < n_weights:
        scratch = np.empty(max(n_weights, _STRIP_WEIGHTS), np.float32)
        _scratch.f32 = scratch
    return scratch


@cache
def load_libggml() -> LibGgml:
    """Opens libggml-base once per process.

    Raises:
        BackendError: llama-cpp-python is not installed, or its library cannot be opened.
    """
    path = _library_path()
    if sys.platform == "win32":
        os.add_dll_directory(str(path.parent))
    try:
        library = ctypes.CDLL(str(path))
        return _bind(library, path)
    except (OSError, AttributeError) as error:
        raise BackendError(f"{path}: cannot be used: {error}", hint=REINSTALL_LLAMA) from error


def _bind(library: ctypes.CDLL, path: Path) -> LibGgml:
    pointer, int64, enum = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int

    def function(name: str, restype: Any, *argtypes: Any) -> Any:
        bound = getattr(library, name)
        bound.restype, bound.argtypes = restype, list(argtypes)
        return bound

    version = function("ggml_version", ctypes.c_char_p)
    return LibGgml(
        path=path,
        version=version().decode(),
        _quantize_chunk=function(
            "ggml_quantize_chunk", ctypes.c_size_t, enum, pointer, pointer, int64, int64, int64, pointer
        ),
        _requires_imatrix=function("ggml_quantize_requires_imatrix", ctypes.c_bool, enum),
        _widen={
            GgmlType.F16: function("ggml_fp16_to_fp32_row", None, pointer, pointer, int64),
            GgmlType.BF16: function("ggml_bf16_to_fp32_row", None, pointer, pointer, int64),
        },
    )


def _library_path() -> Path:
    """The file llama_cpp would load; LLAMA_CPP_LIB_PATH names another directory, as it does there."""
    names = {"win32": ("ggml-base.dll", "libggml-base.dll"), "darwin": ("libggml-base.dylib", "libggml-base.so")}
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        folder = Path(override)
    else:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise BackendError("llama-cpp-python is not installed, and its libggml is needed", hint=REINSTALL_LLAMA)
        folder = Path(spec.origin).parent / "lib"
    for name in names.get(sys.platform, ("libggml-base.so",)):
        if (folder / name).is_file():
            return folder / name
    raise BackendError(f"{folder}: no libggml-base library in it", hint=REINSTALL_LLAMA)
