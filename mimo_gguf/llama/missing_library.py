"""Explains why the installed llama.cpp cannot be loaded: which shared library is missing, and how to install it."""

from __future__ import annotations

import re
from typing import Final

from mimo_gguf.core.version import REINSTALL_LLAMA

# The messages of the loaders of Linux, macOS and Windows about a missing library.
_SAID: Final = (
    re.compile(r"([\w.+-]+\.so[\w.]*): cannot open shared object file"),
    re.compile(r"Library not loaded: (?:\S*/)?([\w.+-]+)"),
    re.compile(r"Could not find module '(?:[^']*[\\/])?([\w.+-]+)'"),
)
# Beginning of a library's name -> how to install it; the first match counts.
_SOURCES: Final = (
    (
        r"libcuda\.|nvcuda",
        "it belongs to NVIDIA's driver: install the driver, or start the container with the GPU (docker: --gpus all)",
    ),
    (
        "libcu|libnv|cublas|cudart",
        "it belongs to CUDA: install the CUDA libraries of that version, or name their folder in LD_LIBRARY_PATH",
    ),
    ("libvulkan|vulkan", "it is the Vulkan loader: install libvulkan1 (Debian, Ubuntu) or vulkan-loader (Fedora)"),
    (
        "libamdhip|libroc|libhip|libhsa",
        "it belongs to ROCm: install the ROCm libraries, or name their folder in LD_LIBRARY_PATH",
    ),
    (
        "libsycl|libze|libmkl|libur|libsvml|libimf|libintlc",
        "it belongs to oneAPI: run its setvars.sh first",
    ),
    ("libgomp", "it is GCC's OpenMP library: install libgomp1 (Debian, Ubuntu) or libgomp (Fedora)"),
    ("libomp", "it is LLVM's OpenMP library: install libomp"),
    ("libopenblas|libblas", "it is a BLAS library: install libopenblas0 (Debian, Ubuntu) or openblas (Fedora)"),
)


def missing_library(said: str) -> str | None:
    """The name of the missing shared library in a loader's message, such as `libcuda.so.1`; None if it names none."""
    found = (pattern.search(said) for pattern in _SAID)
    return next((match[1] for match in found if match), None)


def loading_hint(said: str) -> str:
    """The hint for `said`, the message of a failed attempt to load llama.cpp."""
    name = missing_library(said)
    for start, source in _SOURCES if name else ():
        if re.match(start, name or "", re.IGNORECASE):
            return f"{name} is missing: {source}"
    return REINSTALL_LLAMA
