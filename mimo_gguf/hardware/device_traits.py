"""How a device's buffers behave: what ggml tells about them, and what only its source tells."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from typing import Final

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.llama.amx import uses_amx
from mimo_gguf.llama.api import api, ggml_function, is_loaded, libraries_of
from mimo_gguf.memory.allocator import CPU_TRAITS, DeviceTraits
from mimo_gguf.memory.arena import UNBOUNDED

# Backends that copy weights from the host and compute with them from this batch size on (their `offload_op`).
_OFFLOAD_MIN_BATCH: Final = {"CUDA": 32, "ROCm": 32, "MUSA": 32, "Vulkan": 32, "MTL": 32, "SYCL": 32}
_CUDA_LIKE: Final = ("CUDA", "ROCm", "MUSA", "SYCL")
_LARGEST: Final = 1 << 46  # bytes; a device that takes a tensor of this size takes any
GGML_TYPE_I8: Final = 24
_POINTER: Final = ctypes.c_void_p


class _Parameters(ctypes.Structure):
    """ggml_init_params (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/include/ggml.h)."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def read_traits(device: int, backend: str, *, is_asynchronous: bool) -> DeviceTraits:
    """The traits of a device.

    Args:
        device: ggml_backend_dev_t.
        backend: ggml's name of its registry.
        is_asynchronous: as in `DeviceTraits`.
    """
    alignment, chunk_bytes = _limits(ggml_function("ggml_backend_dev_buffer_type", _POINTER, _POINTER)(device))
    host_buffers = ggml_function("ggml_backend_dev_host_buffer_type", _POINTER, _POINTER)(device)
    host_alignment, host_chunk_bytes = _limits(host_buffers) if host_buffers else (None, UNBOUNDED)
    tensor_bytes, takes_scattered = _asked(device)
    return DeviceTraits(
        alignment,
        _OFFLOAD_MIN_BATCH.get(backend),
        is_asynchronous,
        backend in _CUDA_LIKE,
        backend == "Vulkan" and "GGML_VK_DISABLE_GRAPH_OPTIMIZE" not in os.environ,
        chunk_bytes=chunk_bytes,
        tensor_bytes=tensor_bytes,
        takes_scattered=takes_scattered,
        host_alignment=host_alignment,
        host_chunk_bytes=host_chunk_bytes,
        is_metal=backend == "MTL",
    )


def cpu_traits() -> DeviceTraits:
    """The traits of this machine's CPU. llama.cpp is not loaded for it; as long as it is not, there is no AMX."""
    return replace(CPU_TRAITS, has_amx=is_loaded() and uses_amx(libraries_of(api())))


def _limits(buffer_type: int) -> tuple[int, int]:
    """The alignment of a kind of buffer, and the most bytes that one may have."""
    alignment = ggml_function("ggml_backend_buft_get_alignment", ctypes.c_size_t, _POINTER)(buffer_type)
    most = ggml_function("ggml_backend_buft_get_max_size", ctypes.c_size_t, _POINTER)(buffer_type)
    return alignment, min(most, UNBOUNDED)


class _Trial:
    """Operations without data, about which a device is asked whether it can do them; ggml has no such properties."""

    def __init__(self, device: int, context: int) -> None:
        self._device = device
        self._context = context
        self._takes = ggml_function("ggml_backend_dev_supports_op", ctypes.c_bool, _POINTER, _POINTER)
        self._new = ggml_function("ggml_new_tensor_3d", _POINTER, _POINTER, ctypes.c_int, *3 * [ctypes.c_int64])

    def largest_tensor(self) -> int:
        """The bytes of the largest tensor that the device computes with."""
        if self._takes_bytes(_LARGEST):
            return UNBOUNDED
        low, high = 0, _LARGEST  # the device takes `low`, and not `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._takes_bytes(middle) else (low, middle)
        return low

    def _takes_bytes(self, n_bytes: int) -> bool:
        return bool(self._takes(self._device, self._new(self._context, GGML_TYPE_I8, n_bytes, 1, 1)))

    def takes_scattered(self) -> bool:
        """Whether it multiplies queries with the K of a quantized cache, which has the heads of a token together."""
        permute = ggml_function("ggml_permute", _POINTER, _POINTER, _POINTER, *4 * [ctypes.c_int])
        multiply = ggml_function("ggml_mul_mat", _POINTER, _POINTER, _POINTER, _POINTER)
        cache = self._new(self._context, int(GgmlType.Q8_0), 64, 2, 256)
        query = self._new(self._context, int(GgmlType.F32), 64, 32, 2)
        keys = permute(self._context, cache, 0, 2, 1, 3)
        return bool(self._takes(self._device, multiply(self._context, keys, query)))


def _asked(device: int) -> tuple[int, bool]:
    """The device's answers to a trial: `tensor_bytes` and `takes_scattered`."""
    n_tensors = _LARGEST.bit_length() + 8
    overhead = ggml_function("ggml_tensor_overhead", ctypes.c_size_t)()
    context = ggml_function("ggml_init", _POINTER, _Parameters)(_Parameters(n_tensors * overhead, None, True))
    try:
        trial = _Trial(device, context)
        return trial.largest_tensor(), trial.takes_scattered()
    finally:
        ggml_function("ggml_free", None, _POINTER)(context)
