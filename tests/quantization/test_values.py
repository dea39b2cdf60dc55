"""Weights that must not be quantized: Inf, NaN and what a type cannot hold; blocks with broken scales."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.quantization.block_scales import _F16_FIELDS, first_bad_row
from mimo_gguf.quantization.kernels.libggml import QUANTIZABLE_TYPES, load_libggml
from tests.quantization.models import Model, stored, write_random
from tests.quantization.runs import quantize

MODEL = Model(n_trunk=1, n_mtp=0, layout="qwen2", width=256, ffn=256, vocab=64)
TENSOR, ROW = "blk.0.ffn_up.weight", 77


def model_with(path: Path, value: float, ggml_type: GgmlType) -> Path:
    """A model with one weight of `value` in row 77 of one tensor."""
    write_random(path, Model(**{**vars(MODEL), "ggml_type": ggml_type}))
    (offset,) = (t.offset for t in read_gguf(path).parts[0].tensors if t.info.name == TENSOR)
    raw = stored(np.array([value], np.float32), ggml_type)
    with path.open("r+b") as file:
        file.seek(offset + (ROW * 256 + 5) * len(raw))
        file.write(raw)
    return path


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("ggml_type", [GgmlType.F32, GgmlType.F16, GgmlType.BF16])
@pytest.mark.parametrize("name", ["Q4_K_M", "BF16", "F32"])
def test_inf_and_nan_are_refused_by_tensor_and_row(
    value: float, ggml_type: GgmlType, name: str, tmp_path: Path
) -> None:
    source = model_with(tmp_path / "model.gguf", value, ggml_type)
    with pytest.raises(MimoGgufError, match=rf"{TENSOR}: row {ROW} holds Inf or NaN \({TENSOR} in model\.gguf\)"):
        quantize(source, tmp_path / "out", [name])


@pytest.mark.parametrize("ggml_type", [GgmlType.F32, GgmlType.BF16])
@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_K_M", "Q6_K", "Q4_0", "IQ4_NL"])
def test_values_too_large_for_the_type_are_refused_with_a_way_out(
    ggml_type: GgmlType, name: str, tmp_path: Path
) -> None:
    source = model_with(tmp_path / "model.gguf", 3e38, ggml_type)
    with pytest.raises(MimoGgufError, match=rf"{TENSOR}: row {ROW} holds a value too large for ") as caught:
        quantize(source, tmp_path / "out", [name])
    assert caught.value.hint is not None
    assert "BF16" in caught.value.hint


def test_large_values_that_the_type_can_hold_are_written(tmp_path: Path) -> None:
    source = model_with(tmp_path / "model.gguf", 1e6, GgmlType.BF16)
    quantize(source, tmp_path / "out", ["Q4_K_M", "BF16"])
    with pytest.raises(MimoGgufError, match="too large for F16"):
        quantize(source, tmp_path / "out", ["F16"])


def ggml_says_valid(rows: np.ndarray, ggml_type: GgmlType) -> bool:
    validate = ctypes.CDLL(str(load_libggml().path)).ggml_validate_row_data
    validate.restype, validate.argtypes = ctypes.c_bool, [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return bool(validate(int(ggml_type), rows.ctypes.data, rows.nbytes))


KNOWN = sorted([*_F16_FIELDS, GgmlType.IQ1_M, GgmlType.F32, GgmlType.F16, GgmlType.BF16], key=int)


def test_every_type_with_scales_is_known() -> None:
    without_f16_scales = {GgmlType.MXFP4, GgmlType.NVFP4, GgmlType.Q1_0}
    assert set(KNOWN) >= QUANTIZABLE_TYPES - without_f16_scales


@pytest.mark.parametrize("ggml_type", KNOWN, ids=lambda t: t.name)
def test_broken_scales_are_found_where_ggml_finds_them(ggml_type: GgmlType, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for trial in range(300):  # random bytes: about every 30th f16 is Inf or NaN
        rows = rng.integers(0, 256, (4, row_bytes(ggml_type, 512)), np.uint8)
        bad = [row for row in range(4) if not ggml_says_valid(rows[row : row + 1].copy(), ggml_type)]
        assert first_bad_row(rows, ggml_type) == (bad[0] if bad else None), trial
    capfd.readouterr()  # ggml complains on stderr
