"""Multiplies by a matrix in AMX's layout, and looks whether the product is right.

Run as a program, because it ends with an illegal instruction if a faulty compiler made the library:

    python amx_trial.py LIBRARY [LIBRARY ...]

The libraries are ggml's, each after those it needs. It says `SAID` only if AMX works. Everything used of ggml is in
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/include/ggml.h and ggml-backend.h beside it.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

SAID: Final = b"the product is right"
OFFER: Final = "_Z28ggml_backend_amx_buffer_typev"  # AMX as a kind of memory; null if the processor has none
N_INNER, N_OUTPUTS, N_ROWS = 256, 64, 17  # so many rows need full tiles and a part of one
_BLOCK: Final = 32  # weights with one scale
_F32, _Q8_0 = 0, 8


def weights() -> list[list[int]]:
    """Small whole numbers, shape (N_OUTPUTS, N_INNER)."""
    return [[(3 * output + 5 * inner) % 11 - 5 for inner in range(N_INNER)] for output in range(N_OUTPUTS)]


def rows() -> list[list[int]]:
    """Whole numbers with a 127 in each block, which 8 bits hold exactly, shape (N_ROWS, N_INNER)."""
    return [[127 if inner % _BLOCK == row else inner % 3 - 1 for inner in range(N_INNER)] for row in range(N_ROWS)]


def blocks_q8_0(matrix: Sequence[Sequence[int]]) -> bytes:
    """The matrix as blocks of Q8_0 with scale 1."""
    parts = (row[at : at + _BLOCK] for row in matrix for at in range(0, len(row), _BLOCK))
    return b"".join(struct.pack(f"<e{_BLOCK}b", 1.0, *part) for part in parts)


def products() -> list[float]:
    """Each row times each output's weights."""
    return [float(sum(map(int.__mul__, row, output))) for row in rows() for output in weights()]


class _Parameters(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class _Ggml:
    """ggml's functions, by name, in whichever library has them."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._libraries = [ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL) for path in paths]

    def __call__(self, name: str, *arguments: Any) -> int:
        function = next(found for library in self._libraries if (found := getattr(library, name, None)) is not None)
        function.restype = ctypes.c_size_t
        return int(function(*arguments))

    def pointer(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        return ctypes.c_void_p(self(name, *arguments))


def multiplied(paths: Sequence[str]) -> list[float]:
    """What llama.cpp makes of `rows` and `weights` with AMX."""
    ggml, size = _Ggml(paths), ctypes.c_int64
    with_weights = ggml.pointer("ggml_init", _Parameters(1 << 16, None, True))
    matrix = ggml.pointer("ggml_new_tensor_2d", with_weights, _Q8_0, size(N_INNER), size(N_OUTPUTS))
    ggml("ggml_backend_alloc_ctx_tensors_from_buft", with_weights, ggml.pointer(OFFER))
    data = blocks_q8_0(weights())
    ggml("ggml_backend_tensor_set", matrix, data, ctypes.c_size_t(0), ctypes.c_size_t(len(data)))

    backend = ggml.pointer("ggml_backend_cpu_init")
    with_graph = ggml.pointer("ggml_init", _Parameters(1 << 20, None, True))
    inputs = ggml.pointer("ggml_new_tensor_2d", with_graph, _F32, size(N_INNER), size(N_ROWS))
    product = ggml.pointer("ggml_mul_mat", with_graph, matrix, inputs)
    graph = ggml.pointer("ggml_new_graph", with_graph)
    ggml("ggml_build_forward_expand", graph, product)
    ggml("ggml_backend_alloc_ctx_tensors", with_graph, backend)
    numbers = (ctypes.c_float * (N_INNER * N_ROWS))(*(number for row in rows() for number in row))
    ggml("ggml_backend_tensor_set", inputs, numbers, ctypes.c_size_t(0), ctypes.c_size_t(ctypes.sizeof(numbers)))
    ggml("ggml_backend_graph_compute", backend, graph)
    result = (ctypes.c_float * (N_OUTPUTS * N_ROWS))()
    ggml("ggml_backend_tensor_get", product, result, ctypes.c_size_t(0), ctypes.c_size_t(ctypes.sizeof(result)))
    return list(result)


if __name__ == "__main__":
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an illegal instruction here is an answer, not a fault
    if multiplied(sys.argv[1:]) == products():
        sys.stdout.buffer.write(SAID)
