"""llama.cpp does not compute with AMX: compilers in wide use make code of it that ends the process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import pytest

from mimo_gguf.llama.amx import Kinds, kinds_of
from mimo_gguf.llama.api import _libraries_of, api

WORD = ctypes.sizeof(ctypes.c_void_p)
NAMES = {1: b"AMX", 2: b"CPU_KLEIDIAI", 3: b"CPU_REPACK"}


class Vector:
    """What a C++ vector of pointers looks like, with more room than it needs."""

    def __init__(self, kinds: Sequence[int]) -> None:
        self._room = (ctypes.c_void_p * 4)(*kinds)
        begin = ctypes.addressof(self._room)
        self._fields = (ctypes.c_size_t * 3)(begin, begin + len(kinds) * WORD, begin + 4 * WORD)

    @property
    def kinds(self) -> Kinds:
        return Kinds(ctypes.addressof(self._fields), NAMES.__getitem__)


@pytest.mark.parametrize(("before", "after"), [
    ((1, 3), (3,)), ((2, 1, 3), (2, 3)), ((3, 1), (3,)), ((1,), ()), ((2, 3), (2, 3)), ((), ()),
])  # fmt: skip
def test_the_others_stay(before: Sequence[int], after: Sequence[int]) -> None:
    kinds = (vector := Vector(before)).kinds
    assert kinds.names == [NAMES[kind] for kind in before]
    for _ in range(2):
        kinds.leave_out_amx()
        assert kinds.names == vector.kinds.names == [NAMES[kind] for kind in after]


def test_an_empty_vector_has_no_memory() -> None:
    fields = (ctypes.c_size_t * 3)()
    kinds = Kinds(ctypes.addressof(fields), NAMES.__getitem__)
    kinds.leave_out_amx()
    assert kinds.names == [] and list(fields) == [0, 0, 0]


def test_a_library_without_the_list() -> None:
    assert kinds_of([object()]) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere compilers have no such fault")
def test_the_loaded_llama_cpp_has_none() -> None:
    kinds = kinds_of(_libraries_of(api()))
    assert kinds is not None, "this build cannot be kept from AMX"
    assert b"AMX" not in kinds.names
    assert set(kinds.names) <= {b"CPU_REPACK", b"CPU_KLEIDIAI", b"CPU_RISCV64_SPACEMIT"}, "what a vector is has changed"
