"""How the kernels of the search are compiled, and where they are kept.

They are kept beside those of `quantization/kernels`, in a folder named after the contents of every file that they are
made of: numba's own cache would not notice that a function in another file has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

from mimo_gguf.core.digests import KERNELS
from mimo_gguf.quantization.kernels import jit


def kernel_of(*folders: Path) -> Callable[[Callable[..., Any]], Any]:
    """Decorator for the entry points of kernels: compiled on the first call, without the GIL, and kept on disk.

    Args:
        folders: the packages that hold the kernel and the functions it calls, besides this one and the lanes.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        outer = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(_cache_folder(Path(__file__).parent, *folders))
        try:
            return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
        except RuntimeError:  # no folder can be written: compile again in every process
            return numba.njit(nogil=True, error_model="numpy")(function)
        finally:
            numba.config.CACHE_DIR = outer

    return decorate


@cache
def _cache_folder(*folders: Path) -> Path:
    beneath = jit.cache_folder()  # named after the contents of the lanes' package
    sources = [source for folder in folders for source in sorted(folder.glob("*.py"))]
    name = KERNELS.hex(beneath.name.encode(), *(source.read_bytes() for source in sources))[:16]
    return beneath.parent / f"search-{name}"
