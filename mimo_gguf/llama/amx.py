"""Keeps llama.cpp from computing with AMX, Intel's matrix units: compilers in wide use make code of it that crashes.

GCC's `_tile_loadconfig` told the optimiser of 8 of the 64 bytes that it reads, so llama.cpp's stores to the others are
removed. Its tiles then have no size, and the first instruction on one is illegal: the process ends at once, whatever it
was about to say. Seen with GCC 12.2; https://github.com/ggml-org/llama.cpp/pull/26954 found the same. A library cannot
be asked whether it is affected. Without AMX llama.cpp repacks weights for AVX-512, as it does on other processors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

_AMX: Final = b"AMX"  # https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-cpu/amx/amx.cpp
# Returns the list of memory kinds for repacked weights; the name is GCC's and Clang's. MSVC's builds do not export it.
# https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-cpu/ggml-cpu.cpp
_LIST: Final = "_Z39ggml_backend_cpu_get_extra_buffer_typesv"
_WORD: Final = ctypes.sizeof(ctypes.c_void_p)


class Kinds:
    """llama.cpp's list of the kinds of memory that a model's weights may be repacked into, a C++ vector of pointers."""

    def __init__(self, address: int, name_of: Any) -> None:
        """Takes the vector's address, and ggml_backend_buft_name."""
        self._fields = (ctypes.c_size_t * 3).from_address(address)  # begin, end, and end of the room
        self._name_of = name_of

    @property
    def names(self) -> list[bytes]:
        """Their names, the kind that is preferred first."""
        return [self._name_of(kind) for kind in self._kinds]

    def leave_out_amx(self) -> None:
        """Removes AMX. Models that are loaded from now on do not use it."""
        kept = [kind for kind, name in zip(self._kinds, self.names, strict=True) if name != _AMX]
        self._kinds[: len(kept)] = kept
        self._fields[1] = self._fields[0] + len(kept) * _WORD

    @property
    def _kinds(self) -> Any:
        begin, end, _ = self._fields
        return (ctypes.c_void_p * ((end - begin) // _WORD)).from_address(begin)


def kinds_of(libraries: Sequence[Any]) -> Kinds | None:
    """The list of the loaded llama.cpp, given its libraries; None if none of them exports it."""
    get, name_of = (_address_of(name, libraries) for name in (_LIST, "ggml_backend_buft_name"))
    if get is None or name_of is None:
        return None
    return Kinds(ctypes.CFUNCTYPE(ctypes.c_size_t)(get)(), ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(name_of))


def _address_of(name: str, libraries: Sequence[Any]) -> int | None:
    found = (getattr(library, name, None) for library in libraries)
    return next((ctypes.cast(function, ctypes.c_void_p).value for function in found if function is not None), None)
