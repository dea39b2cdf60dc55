"""Lets llama.cpp compute with AMX, Intel's matrix units, only if it can: compilers in wide use make code that crashes.

GCC's `_tile_loadconfig` told the optimiser of 8 of the 64 bytes that it reads, so llama.cpp's stores to the others are
removed. Its tiles then have no size, and the first instruction on one is illegal: the process ends at once, whatever it
was about to say. Seen with GCC 12.2; https://github.com/ggml-org/llama.cpp/pull/26954 found the same. A library cannot
be asked whether it is affected, so another process tries (`amx_trial`). Without AMX llama.cpp repacks weights for
AVX-512, as it does on other processors.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from mimo_gguf.llama.amx_trial import OFFER, SAID
from mimo_gguf.llama.symbols import address_of

AMX: Final = b"AMX"  # https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-cpu/amx/amx.cpp
# Returns the list of memory kinds for repacked weights; the name is GCC's and Clang's. MSVC's builds do not export it.
# https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-cpu/ggml-cpu.cpp
_LIST: Final = "_Z39ggml_backend_cpu_get_extra_buffer_typesv"
_WORD: Final = ctypes.sizeof(ctypes.c_void_p)
_TRIAL: Final = Path(__file__).with_name("amx_trial.py")
_PATIENCE_S: Final = 20.0


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
        """Removes AMX. It has to be done before the first model is loaded: llama.cpp then copies the list."""
        kept = [kind for kind, name in zip(self._kinds, self.names, strict=True) if name != AMX]
        self._kinds[: len(kept)] = kept
        self._fields[1] = self._fields[0] + len(kept) * _WORD

    @property
    def _kinds(self) -> Any:
        begin, end, _ = self._fields
        return (ctypes.c_void_p * ((end - begin) // _WORD)).from_address(begin)


def leave_out_faulty_amx(libraries: Mapping[str, Any]) -> None:
    """Leaves out AMX unless it works. Call it before the first model is loaded.

    Args:
        libraries: llama.cpp's, as `api.libraries_of`.
    """
    kinds = kinds_of(libraries)
    if kinds is not None and AMX in kinds.names:
        parts = [libraries[name] for name in ("ggml-base", "ggml-cpu") if name in libraries]
        if not works(parts or [libraries["llama"]]):
            kinds.leave_out_amx()


def uses_amx(libraries: Mapping[str, Any]) -> bool:
    """Whether llama.cpp keeps weights of layers on the CPU in AMX's layout."""
    kinds = kinds_of(libraries)
    return kinds is not None and AMX in kinds.names


def how_amx_is_used(libraries: Mapping[str, Any]) -> str:
    """In words; empty if this llama.cpp or this processor has none."""
    if uses_amx(libraries):
        return "is used; its products are right"
    offer = address_of([OFFER], libraries.values())
    if offer is None or not ctypes.CFUNCTYPE(ctypes.c_size_t)(offer)():
        return ""
    return "is left out: this llama.cpp crashes with it, or is wrong; docs/engine.md has how to compile one that works"


def kinds_of(libraries: Mapping[str, Any]) -> Kinds | None:
    """The list of the loaded llama.cpp; None if no library exports it."""
    get, name_of = (address_of([name], libraries.values()) for name in (_LIST, "ggml_backend_buft_name"))
    if get is None or name_of is None:
        return None
    return Kinds(ctypes.CFUNCTYPE(ctypes.c_size_t)(get)(), ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(name_of))


def works(libraries: Sequence[Any]) -> bool:
    """Whether a product made with AMX is right; tried in another process, which may crash. Takes 0.1 to 0.2 s.

    Args:
        libraries: ggml's, each after those it needs.
    """
    if getattr(sys, "frozen", False):  # then sys.executable is no interpreter, but this program again
        return False
    command = [sys.executable, "-I", "-S", str(_TRIAL), *(library._name for library in libraries)]
    try:
        done = subprocess.run(command, timeout=_PATIENCE_S, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout == SAID
