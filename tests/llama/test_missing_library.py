"""What a loader says is missing, and that the hint is about that."""

from __future__ import annotations

import ctypes

import pytest

from mimo_gguf.core.version import REINSTALL_LLAMA
from mimo_gguf.llama.missing_library import loading_hint, missing_library

LINUX = "Failed to load shared library '/x/llama_cpp/lib/libllama.so': {}: cannot open shared object file: No such file"
MACOS = "dlopen(/x/libllama.dylib, 0x0006): Library not loaded: @rpath/{}\n  Referenced from: /x/libllama.dylib"
WINDOWS = "Could not find module 'C:\\x\\lib\\{}' (or one of its dependencies). Try using the full path"


@pytest.mark.parametrize(
    ("said", "name", "hint"),
    [
        (LINUX.format("libcuda.so.1"), "libcuda.so.1", "NVIDIA's driver"),
        (LINUX.format("libcublas.so.13"), "libcublas.so.13", "CUDA libraries"),
        (LINUX.format("libcudart.so.12"), "libcudart.so.12", "CUDA libraries"),
        (LINUX.format("libnccl.so.2"), "libnccl.so.2", "reinstall"),
        (LINUX.format("libvulkan.so.1"), "libvulkan.so.1", "libvulkan1"),
        (LINUX.format("libamdhip64.so.6"), "libamdhip64.so.6", "ROCm"),
        (LINUX.format("librocblas.so.4"), "librocblas.so.4", "ROCm"),
        (LINUX.format("libsycl.so.8"), "libsycl.so.8", "oneAPI"),
        (LINUX.format("libgomp.so.1"), "libgomp.so.1", "libgomp1"),
        (LINUX.format("libstdc++.so.6"), "libstdc++.so.6", "reinstall"),
        (MACOS.format("libomp.dylib"), "libomp.dylib", "libomp"),
        (WINDOWS.format("cublas64_13.dll"), "cublas64_13.dll", "CUDA libraries"),
        (WINDOWS.format("llama.dll"), "llama.dll", "reinstall"),
        ("/lib/libc.so.6: version `GLIBC_2.38' not found (required by /x/libggml.so)", None, "reinstall"),
        ("No module named 'llama_cpp'", None, "reinstall"),
    ],
)
def test_the_missing_library_is_named(said: str, name: str | None, hint: str) -> None:
    assert missing_library(said) == name
    assert hint in loading_hint(said)
    assert (loading_hint(said) == REINSTALL_LLAMA) == (hint == "reinstall")


def test_this_systems_loader_is_understood() -> None:
    with pytest.raises(OSError, match="libcuda") as caught:
        ctypes.CDLL("libcuda.so.99")
    assert missing_library(str(caught.value)) in ("libcuda.so.99", None)  # None on macOS, whose words are others
