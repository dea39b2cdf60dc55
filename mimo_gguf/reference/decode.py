"""Stored rows of any ggml type as float32 values, decoded by libggml itself."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_source import Bytes
from mimo_gguf.core.version import REINSTALL_LLAMA
from mimo_gguf.quantization.kernels.libggml import load_libggml

Floats = NDArray[np.float32]


def decode_rows(raw: Bytes, ggml_type: GgmlType, out: Floats) -> None:
    """Decodes rows of any type into `out`.

    Args:
        raw: contiguous uint8, shape [rows, row_bytes].
        out: contiguous float32, shape [rows, columns].

    Raises:
        BackendError: libggml cannot be loaded, or it cannot decode the type.
    """
    if ggml_type is GgmlType.F32:
        out[...] = raw.view(np.float32)
    else:
        _decoder(ggml_type)(raw.ctypes.data, out.ctypes.data, out.size)


@cache
def _decoder(ggml_type: GgmlType) -> Any:
    """libggml's function that decodes a type: its blocks, the floats, and their number.

    Source: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-quants.h
    """
    floats = {GgmlType.F16: "ggml_fp16_to_fp32_row", GgmlType.BF16: "ggml_bf16_to_fp32_row"}
    name = floats.get(ggml_type, f"dequantize_row_{ggml_type.name.lower().replace('_k', '_K')}")
    path = load_libggml().path
    try:
        decoder = getattr(ctypes.CDLL(str(path)), name)
    except AttributeError:
        raise BackendError(f"{path}: has no {name}", hint=REINSTALL_LLAMA) from None
    decoder.restype, decoder.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return decoder
