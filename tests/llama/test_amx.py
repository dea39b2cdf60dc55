"""llama.cpp computes with AMX only if it can: compilers in wide use make code of it that ends the process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.llama import amx, amx_trial
from mimo_gguf.llama.amx import Kinds, how_amx_is_used, kinds_of, leave_out_faulty_amx, uses_amx
from mimo_gguf.llama.api import api, libraries_of

WORD = ctypes.sizeof(ctypes.c_void_p)
OFFER, NOTHING = (ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda kind=kind: kind) for kind in (1, 0))
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
    assert kinds_of({"llama": object()}) is None and not uses_amx({"llama": object()})
    leave_out_faulty_amx({"llama": object()})


class Libraries:
    """A llama.cpp whose list has AMX; a trial finds that it works, or not."""

    def __init__(self, names: Sequence[str]) -> None:
        self.vector, self.tried = Vector((1, 3)), list[Any]()
        self.by_name = {name: object() for name in names}


@pytest.mark.parametrize("is_good", [True, False])
@pytest.mark.parametrize(("names", "tried"), [
    (("llama", "ggml", "ggml-base", "ggml-cpu"), ("ggml-base", "ggml-cpu")), (("llama",), ("llama",)),
])  # fmt: skip
def test_it_is_left_out_if_a_trial_fails(
    is_good: bool, names: Sequence[str], tried: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = Libraries(names)

    def works(found: Sequence[Any]) -> bool:
        libraries.tried += found
        return is_good

    monkeypatch.setattr(amx, "kinds_of", lambda _: libraries.vector.kinds)
    monkeypatch.setattr(amx, "works", works)
    leave_out_faulty_amx(libraries.by_name)
    assert libraries.tried == [libraries.by_name[name] for name in tried]
    assert libraries.vector.kinds.names == [b"AMX", b"CPU_REPACK"][not is_good :]
    assert uses_amx(libraries.by_name) == is_good
    words = "is used" if is_good else "is left out"
    monkeypatch.setattr(amx, "address_of", lambda *_: ctypes.cast(OFFER, ctypes.c_void_p).value)
    assert how_amx_is_used(libraries.by_name).startswith(words)


@pytest.mark.parametrize("address", [None, "nothing"])
def test_where_there_is_no_amx_nothing_is_said(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = ctypes.cast(NOTHING, ctypes.c_void_p).value
    vector = Vector((3,))
    monkeypatch.setattr(amx, "kinds_of", lambda _: vector.kinds)
    monkeypatch.setattr(amx, "address_of", lambda *_: address and nothing)
    assert how_amx_is_used({}) == ""


@pytest.mark.parametrize(("code", "verdict"), [
    ("print('the product is right', end='')", True), ("pass", False), ("print('I am another program')", False),
    ("import os; os.kill(os.getpid(), 4)", False), ("import time; time.sleep(60)", False),
])  # fmt: skip
def test_the_verdict_of_a_trial(code: str, verdict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "trial.py"
    script.write_text(code)
    monkeypatch.setattr(amx, "_TRIAL", script)
    monkeypatch.setattr(amx, "_PATIENCE_S", 5.0)
    assert amx.works([]) == verdict
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not amx.works([]), "it would start itself again and again"


def test_without_an_interpreter_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert not amx.works([])


def test_a_trial_needs_the_right_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows hold exactly in 8 bits, so that nothing is rounded; a product made without AMX is the same."""
    matrix = np.array(amx_trial.weights(), np.float32)
    inputs = np.array(amx_trial.rows(), np.float32)
    assert np.abs(inputs).reshape(len(inputs), -1, 32).max(-1).min() == 127
    stored = gguf.dequantize(np.frombuffer(amx_trial.blocks_q8_0(amx_trial.weights()), np.uint8), GgmlType.Q8_0)
    assert np.array_equal(stored.reshape(matrix.shape), matrix)
    assert amx_trial.products() == (inputs @ matrix.T).reshape(-1).tolist()
    monkeypatch.setattr(amx_trial, "OFFER", "ggml_backend_cpu_buffer_type")
    libraries = libraries_of(api())
    parts = [libraries[name] for name in ("ggml-base", "ggml-cpu") if name in libraries] or [libraries["llama"]]
    assert amx_trial.multiplied([library._name for library in parts]) == amx_trial.products()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the list is not known to be exported")
def test_the_list_of_the_loaded_llama_cpp() -> None:
    kinds = kinds_of(libraries_of(api()))
    assert kinds is not None, "this build cannot be kept from AMX"
    known = {b"AMX", b"CPU_REPACK", b"CPU_KLEIDIAI", b"CPU_RISCV64_SPACEMIT"}
    assert set(kinds.names) <= known, "what a vector is has changed"
