"""Why the installed llama.cpp cannot be loaded: which shared library is missing, and where that comes from."""

from __future__ import annotations

import re
from typing import Final

from mimo_gguf.core.version import REINSTALL_LLAMA

# What the loaders of Linux, macOS and Windows say of a library that another one needs.
_SAID: Final = (
    re.compile(r"([\w.+-]+\.so[\w.]*): cannot open shared object file"),
    re.compile(r"Library not loaded: (?:\S*/)?([\w.+-]+)"),
    re.compile(r"Could not find module '(?:[^']*[\\/])?([\w.+-]+)'"),
)
# Beginning of a library's name -> where it comes from; the first that matches.
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
    """The name of the shared library that a loader's message calls missing: `libcuda.so.1`; None if it names none."""
    found = (pattern.search(said) for pattern in _SAID)
    return next((match[1] for match in found if match), None)


def loading_hint(said: str) -> str:
    """What helps after `said`, the message of the attempt to load llama.cpp."""
    name = missing_library(said)
    for start, source in _SOURCES if name else ():
        if re.match(start, name or "", re.IGNORECASE):
            return f"{name} is missing: {source}"
    return REINSTALL_LLAMA
