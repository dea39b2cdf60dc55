"""The KV cache of one sequence as bytes: read out of a context, and written into one. Everything happens at once."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

Blob = NDArray[np.uint8]


def state_bytes(library: Any, pointer: Any, seq_id: int) -> int:
    """The bytes that `read_state` gives for a sequence of a context. `library` is llama.cpp's, as in `api()`."""
    return int(library.llama_state_seq_get_size(pointer, seq_id))


def read_state(library: Any, pointer: Any, seq_id: int) -> Blob:
    """A copy of a sequence's cells. Raises MemoryError."""
    blob = _pages(state_bytes(library, pointer, seq_id))
    n = library.llama_state_seq_get_data(pointer, _address(blob), blob.nbytes, seq_id)
    return blob[:n]


def write_state(library: Any, pointer: Any, seq_id: int, blob: Blob) -> bool:
    """Replaces a sequence's cells by a copy. Returns False if llama.cpp refuses it."""
    return bool(library.llama_state_seq_set_data(pointer, _address(blob), blob.nbytes, seq_id))


def _pages(n_bytes: int) -> Blob:
    """Memory in pages of its own, which go back to the system with the array.

    Conversations come and go in all sizes. On the heap their gaps would stay with the process. Raises MemoryError.
    """
    try:
        pages = mmap.mmap(-1, max(1, n_bytes))
    except OSError as error:
        raise MemoryError(str(error)) from None
    return np.frombuffer(pages, np.uint8)[:n_bytes]


def _address(blob: Blob) -> Any:
    return blob.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
