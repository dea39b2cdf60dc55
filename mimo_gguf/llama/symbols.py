"""Finds functions in llama.cpp's libraries by the names that they export."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable
from typing import Any


def address_of(names: Iterable[str], libraries: Iterable[Any]) -> int | None:
    """The address of the first of `names` that one of the libraries exports; None if there is none.

    An address, because llama_cpp_ext may have bound the function object of the same symbol with other types.
    """
    found = (getattr(library, name, None) for name, library in itertools.product(names, libraries))
    return next((ctypes.cast(function, ctypes.c_void_p).value for function in found if function is not None), None)
