"""Which kernel is chosen, and what happens when ours cannot be trusted."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.quantization.kernels import numba_kernels, registry
from mimo_gguf.quantization.kernels.libggml import QUANTIZABLE_TYPES
from mimo_gguf.quantization.kernels.probe import probe_rows, stored_as
from mimo_gguf.quantization.kernels.registry import Kernel, describe_kernels, kernel_for
from tests.quantization.kernels.data_sets import weights

on_x86 = platform.machine() in {"x86_64", "AMD64"}


@pytest.fixture
def forget_kernels() -> Iterator[None]:
    registry._kernel.cache_clear()
    yield
    registry._kernel.cache_clear()


def apply(kernel: Kernel, rows: NDArray[Any], importance: Any = None) -> NDArray[np.uint8]:
    out = np.empty((len(rows), row_bytes(kernel.ggml_type, rows.shape[1])), np.uint8)
    kernel(rows, out, importance)
    return out


@pytest.mark.skipif(not on_x86, reason="elsewhere libggml may fuse operations, and the probe may rightly refuse")
@pytest.mark.parametrize("source_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("ggml_type", ["Q4_K", "Q5_K", "Q6_K", "Q8_0"])
def test_our_kernel_passes_the_probe(ggml_type: str, source_type: str) -> None:
    kernel = kernel_for(GgmlType[ggml_type], GgmlType[source_type])
    assert kernel.name.startswith("numba")
    assert kernel.note == "probe identical to libggml"


def test_a_kernel_that_differs_in_one_bit_is_not_used(monkeypatch: pytest.MonkeyPatch, forget_kernels: None) -> None:
    original = numba_kernels.NUMBA_KERNELS[GgmlType.Q4_K]

    def damaged(src: Any, out: Any, importance: Any) -> None:
        original(src, out, importance)
        out[-1] ^= 1

    monkeypatch.setitem(numba_kernels.NUMBA_KERNELS, GgmlType.Q4_K, damaged)
    kernel = kernel_for(GgmlType.Q4_K, GgmlType.BF16)
    assert kernel.name.startswith("libggml")
    assert kernel.note == "our kernel differs from libggml in 1 bytes of the probe"
    rows = stored_as(weights("normal", 2, 256), GgmlType.BF16)
    registry._kernel.cache_clear()
    monkeypatch.undo()
    np.testing.assert_array_equal(apply(kernel, rows), apply(kernel_for(GgmlType.Q4_K, GgmlType.BF16), rows))


def test_a_kernel_that_does_not_compile_is_not_used(monkeypatch: pytest.MonkeyPatch, forget_kernels: None) -> None:
    def broken(src: Any, out: Any, importance: Any) -> None:
        raise NotImplementedError("no such instruction\nlong story")

    monkeypatch.setitem(numba_kernels.NUMBA_KERNELS, GgmlType.Q6_K, broken)
    kernel = kernel_for(GgmlType.Q6_K, GgmlType.F32)
    assert kernel.name.startswith("libggml")
    assert kernel.note == "our kernel does not compile here: NotImplementedError: no such instruction"


def test_the_environment_can_ask_for_libggml(monkeypatch: pytest.MonkeyPatch, forget_kernels: None) -> None:
    monkeypatch.setenv(registry.CHOICE_VARIABLE, "libggml")
    assert all(not kernel.name.startswith("numba") for kernel in describe_kernels())


def run_python(code: str, **environment: str) -> str:
    import os

    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, check=True, capture_output=True, text=True
    ).stdout


def test_without_numba_libggml_does_everything() -> None:
    code = """
import sys
sys.modules["numba"] = None
import numpy as np
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.quantization.kernels import first_nonfinite, kernel_for
rows = np.ones((2, 256), np.float32)
out = np.empty((2, row_bytes(GgmlType.Q4_K, 256)), np.uint8)
kernel = kernel_for(GgmlType.Q4_K, GgmlType.F32)
kernel(rows, out)
rows[1, 7] = np.inf
print(kernel.name, first_nonfinite(rows, GgmlType.F32), kernel.note)
"""
    output = run_python(code)
    assert output.startswith("libggml ")
    assert "(1, 7) numba does not work here" in output


def test_importing_loads_neither_numba_nor_llama_cpp() -> None:
    code = """
import sys
import mimo_gguf.quantization.kernels as kernels
kernels.requires_importance(__import__("gguf").GGMLQuantizationType.Q4_K)
print(sorted({"numba", "llvmlite", "llama_cpp", "torch"} & set(sys.modules)))
"""
    assert run_python(code).strip() == "[]"


def test_compiled_kernels_are_kept_in_a_folder_of_this_version(tmp_path: Path) -> None:
    code = """
import numpy as np
from mimo_gguf.quantization.kernels.scan import first_suspect_strip
print(first_suspect_strip(np.ones(1024, np.float32), 0x7F800000), first_suspect_strip.stats.cache_hits)
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split()[0] == "1024"
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("kernels-")
    assert list(folder.rglob("*.nbi"))


def test_it_is_known_whether_kernels_have_to_be_compiled(tmp_path: Path) -> None:
    code = """
import numpy as np
from mimo_gguf.quantization.kernels import first_nonfinite, have_to_compile
from mimo_gguf.core.ggml_types import GgmlType
before = have_to_compile()
first_nonfinite(np.ones((1, 1024), np.float32), GgmlType.F32)
print(before, have_to_compile())
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["True", "False"]
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path / "new"), MIMO_GGUF_KERNELS="libggml").split()[0] == "False"


def test_every_type_has_a_kernel_and_a_reason() -> None:
    kernels = describe_kernels()
    assert {kernel.ggml_type for kernel in kernels} == QUANTIZABLE_TYPES
    assert all(kernel.name and kernel.note for kernel in kernels)
    needing = {kernel.ggml_type.name for kernel in kernels if kernel.with_importance}
    assert needing == {"IQ2_XXS", "IQ2_XS", "IQ1_S"}


@pytest.mark.parametrize("source_type", ["F32", "F16", "BF16"])
def test_the_same_type_is_a_copy(source_type: str) -> None:
    float_type = GgmlType[source_type]
    rows = stored_as(weights("normal", 3, 100 * 32), float_type)
    kernel = kernel_for(float_type, float_type)
    assert kernel.name == "copy"
    np.testing.assert_array_equal(apply(kernel, rows), rows.view(np.uint8))


@pytest.mark.skipif(not on_x86, reason="elsewhere libggml may fuse operations, and the probe may rightly refuse")
@pytest.mark.parametrize("ggml_type", ["Q4_K", "Q5_K", "Q6_K"])
def test_an_importance_row_changes_what_our_kernels_write(ggml_type: str) -> None:
    rows = weights("normal", 4, 512)
    importance = np.random.default_rng(0).random(512, np.float32) ** 4
    weighted = kernel_for(GgmlType[ggml_type], GgmlType.F32, with_importance=True)
    assert weighted.name.startswith("numba")
    assert (apply(weighted, rows, importance) != apply(kernel_for(GgmlType[ggml_type], GgmlType.F32), rows)).any()


def test_a_kernel_that_differs_only_with_an_importance_row_is_not_used_there(
    monkeypatch: pytest.MonkeyPatch, forget_kernels: None
) -> None:
    original = numba_kernels.NUMBA_KERNELS[GgmlType.Q6_K]
    monkeypatch.setitem(
        numba_kernels.NUMBA_KERNELS, GgmlType.Q6_K, lambda src, out, importance: original(src, out, None)
    )
    assert kernel_for(GgmlType.Q6_K, GgmlType.F32, with_importance=True).name.startswith("libggml")
    assert kernel_for(GgmlType.Q6_K, GgmlType.F32).note.startswith(("probe identical", "our kernel differs"))


def test_q8_0_takes_no_notice_of_an_importance_row() -> None:
    rows = weights("normal", 4, 512)
    importance = np.random.default_rng(0).random(512, np.float32) ** 4
    indifferent, plain = (kernel_for(GgmlType.Q8_0, GgmlType.F32, with_importance=flag) for flag in (True, False))
    assert indifferent.name == plain.name
    np.testing.assert_array_equal(apply(indifferent, rows, importance), apply(plain, rows))


@pytest.mark.parametrize(
    ("ggml_type", "source_type", "message"),
    [
        ("Q8_K", "F32", "cannot quantize"),
        ("I32", "F32", "cannot quantize"),
        ("Q4_K", "Q8_0", "cannot quantize"),
        ("IQ2_XXS", "F32", "importance matrix"),
    ],
)
def test_what_libggml_would_abort_on_is_refused(ggml_type: str, source_type: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        kernel_for(GgmlType[ggml_type], GgmlType[source_type])


def test_arguments_that_do_not_fit_are_refused() -> None:
    kernel = kernel_for(GgmlType.Q8_0, GgmlType.F32)
    rows, out = np.ones((2, 64), np.float32), np.empty((2, 68), np.uint8)
    kernel(rows, out)
    bad: list[tuple[Any, ...]] = [
        (rows[0], out),
        (rows[:, ::2], out),
        (rows.T, out),
        (rows, out[:1]),
        (rows, out.view(np.int8)),
        (rows, np.empty((2, 136), np.uint8)[:, ::2]),
        (np.ones((2, 33), np.float32), out),
        (rows, out, np.ones(64, np.float32)),
    ]
    for arguments in bad:
        with pytest.raises(ValueError, match=r"must be|whole number|asked for"):
            kernel(*arguments)
    weighted = kernel_for(GgmlType.Q4_0, GgmlType.F32, with_importance=True)
    wrong: tuple[Any, ...] = (None, np.ones(63, np.float32), np.ones(64, np.float64), np.ones(128, np.float32)[::2])
    for importance in wrong:
        with pytest.raises(ValueError, match=r"must be|asked for"):
            weighted(rows, np.empty((2, 36), np.uint8), importance)


def test_the_probe_is_finite_and_the_same_everywhere() -> None:
    for float_type in (GgmlType.F32, GgmlType.F16, GgmlType.BF16):
        rows = probe_rows(float_type)
        wide = rows.astype(np.float32) if rows.dtype != np.uint16 else (rows.astype(np.uint32) << 16).view(np.float32)
        assert np.isfinite(wide).all()
        np.testing.assert_array_equal(rows, probe_rows(float_type))
