"""The table of our kernels. Importing this imports numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import llvmlite.binding
import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.quantization.kernels.casts import cast_to_bf16, cast_to_f16
from mimo_gguf.quantization.kernels.q4_k_q5_k import Q4_K_TRIALS, Q5_K_TRIALS, quantize_q4_k, quantize_q5_k
from mimo_gguf.quantization.kernels.q4_k_q5_k_importance import (
    Q4_K_IMPORTANCE_TRIALS,
    Q5_K_IMPORTANCE_TRIALS,
    UNIT_TRIALS,
    quantize_q4_k_by_importance,
    quantize_q5_k_by_importance,
)
from mimo_gguf.quantization.kernels.q6_k import Q6_K_TRIALS, quantize_q6_k
from mimo_gguf.quantization.kernels.q8_0 import quantize_q8_0

# Flat source of whole rows (float32; int16 holds f16, uint16 bf16), flat uint8 output, float32 importance of one row's
# columns or None.
FlatKernel = Callable[[NDArray[Any], NDArray[np.uint8], NDArray[np.float32] | None], None]


def _q4_k(src: NDArray[Any], out: NDArray[np.uint8], importance: NDArray[np.float32] | None) -> None:
    if importance is None:
        quantize_q4_k(src, out, Q4_K_TRIALS)
    else:
        quantize_q4_k_by_importance(src, out, importance, Q4_K_IMPORTANCE_TRIALS, UNIT_TRIALS)


def _q5_k(src: NDArray[Any], out: NDArray[np.uint8], importance: NDArray[np.float32] | None) -> None:
    if importance is None:
        quantize_q5_k(src, out, Q5_K_TRIALS)
    else:
        quantize_q5_k_by_importance(src, out, importance, Q5_K_IMPORTANCE_TRIALS, UNIT_TRIALS)


def _q6_k(src: NDArray[Any], out: NDArray[np.uint8], importance: NDArray[np.float32] | None) -> None:
    quantize_q6_k(src, out, _NO_IMPORTANCE if importance is None else importance, Q6_K_TRIALS)


_NO_IMPORTANCE: Final = np.empty(0, np.float32)

# The first three take no notice of an importance row, in libggml either.
NUMBA_KERNELS: Final[dict[GgmlType, FlatKernel]] = {
    GgmlType.F16: lambda src, out, importance: cast_to_f16(src, out.view(np.uint16)),
    GgmlType.BF16: lambda src, out, importance: cast_to_bf16(src, out.view(np.uint16)),
    GgmlType.Q8_0: lambda src, out, importance: quantize_q8_0(src, out),
    GgmlType.Q4_K: _q4_k,
    GgmlType.Q5_K: _q5_k,
    GgmlType.Q6_K: _q6_k,
}

# How numba sees the storage of each source type; it knows no float16 arrays.
NUMBA_STORAGE: Final[dict[GgmlType, type[np.generic]]] = {
    GgmlType.F32: np.float32,
    GgmlType.F16: np.int16,
    GgmlType.BF16: np.uint16,
}


def instruction_set() -> str:
    """What the lanes are made of on this machine, for people."""
    features = llvmlite.binding.get_host_cpu_features()
    for feature, name in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX"), ("neon", "NEON")):
        if features.get(feature):
            return name
    return "plain"
