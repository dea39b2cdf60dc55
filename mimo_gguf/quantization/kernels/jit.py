"""How a kernel is compiled: without the GIL, C's division by zero, and cached on disk.

numba's own cache would keep a kernel as long as its file does not change, even when a function it calls, in another
file, does. So the cache lies in a folder named after the contents of this whole package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

from mimo_gguf.core.digests import KERNELS


def kernel(function: Callable[..., Any]) -> Any:
    """Decorator for the entry points: flat source array, flat output array, tables; compiled on the first call."""
    outer = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder())  # read while the decorator runs
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder can be written: compile again in every process
        return numba.njit(nogil=True, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = outer


@cache
def cache_folder() -> Path:
    """Where this version's compiled kernels are kept; made when the first is."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    name = f"kernels-{KERNELS.hex(*(source.read_bytes() for source in sources))[:16]}"
    if numba.config.CACHE_DIR:  # NUMBA_CACHE_DIR
        return Path(numba.config.CACHE_DIR) / name
    return _user_cache() / "mimo-gguf" / name


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
