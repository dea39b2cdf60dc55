"""The table of our kernels. Importing this imports numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import llvmlite.binding
import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.quantization.kernels.casts import cast_to_bf16, cast_to_f16
from mimo_gguf.quantization.kernels.q4_k_q5_k import Q4_K_TRIALS, Q5_K_TRIALS, quantize_q4_k_or_q5_k
from mimo_gguf.quantization.kernels.q6_k import Q6_K_TRIALS, quantize_q6_k
from mimo_gguf.quantization.kernels.q8_0 import quantize_q8_0

# Flat source (float32; int16 holds f16, uint16 bf16), flat uint8 output.
FlatKernel = Callable[[NDArray[Any], NDArray[np.uint8]], None]

NUMBA_KERNELS: Final[dict[GgmlType, FlatKernel]] = {
    GgmlType.F16: lambda src, out: cast_to_f16(src, out.view(np.uint16)),
    GgmlType.BF16: lambda src, out: cast_to_bf16(src, out.view(np.uint16)),
    GgmlType.Q8_0: quantize_q8_0,
    GgmlType.Q4_K: lambda src, out: quantize_q4_k_or_q5_k(src, out, Q4_K_TRIALS, 15),
    GgmlType.Q5_K: lambda src, out: quantize_q4_k_or_q5_k(src, out, Q5_K_TRIALS, 31),
    GgmlType.Q6_K: lambda src, out: quantize_q6_k(src, out, Q6_K_TRIALS),
}

# These take no notice of an importance matrix, in libggml either.
IGNORE_IMPORTANCE: Final = frozenset({GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0})

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
