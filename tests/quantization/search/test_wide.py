"""The wide search: smaller errors than llama.cpp's in valid blocks, for a run of the quantizer as well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf.quants import dequantize
from numpy.typing import NDArray

from mimo_gguf.core.errors import UsageError, WeightsError
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.quantization.block_scales import first_bad_row
from mimo_gguf.quantization.kernels.libggml import load_libggml
from mimo_gguf.quantization.kernels.probe import stored_as
from mimo_gguf.quantization.search.kinds import KINDS
from mimo_gguf.quantization.search.wide import search_matrix, wide_kernel
from tests.quantization.kernels.data_sets import DATA_SETS
from tests.quantization.kernels.data_sets import weights as awkward_weights
from tests.quantization.models import Model, write_random
from tests.quantization.runs import quantize, read_tensors

N_COLUMNS = 512
Numbers = NDArray[np.float32]

IMPORTANCE = np.exp(np.random.default_rng(6).standard_normal(N_COLUMNS)).astype(np.float32)
WEIGHTS = (np.random.default_rng(5).standard_t(8, (40, N_COLUMNS)) * 0.02).astype(np.float32)


def weighted_error(weights: Numbers, data: NDArray[np.uint8], ggml_type: GgmlType, importance: Numbers) -> float:
    return float((importance * (dequantize(data, ggml_type).astype(np.float64) - weights) ** 2).sum())


def llama_cpp_blocks(weights: Numbers, ggml_type: GgmlType, importance: Numbers | None) -> NDArray[np.uint8]:
    out = np.empty((len(weights), row_bytes(ggml_type, N_COLUMNS)), np.uint8)
    load_libggml().quantize(weights, GgmlType.F32, ggml_type, out, importance)
    return out


@pytest.mark.parametrize("ggml_type", KINDS, ids=lambda t: t.name)
@pytest.mark.parametrize("by_importance", [False, True])
def test_errors_are_smaller_than_llama_cpps(ggml_type: GgmlType, by_importance: bool) -> None:
    importance = IMPORTANCE if by_importance else np.ones_like(IMPORTANCE)
    given = importance if by_importance else None
    ours = weighted_error(WEIGHTS, search_matrix(WEIGHTS, ggml_type, given), ggml_type, importance)
    theirs = weighted_error(WEIGHTS, llama_cpp_blocks(WEIGHTS, ggml_type, given), ggml_type, importance)
    assert ours < theirs


@pytest.mark.parametrize("ggml_type", KINDS, ids=lambda t: t.name)
def test_blocks_are_valid_whatever_the_weights(ggml_type: GgmlType) -> None:
    weights = np.concatenate([awkward_weights(name, 2, N_COLUMNS) for name in DATA_SETS])
    weights = weights.clip(-KINDS[ggml_type].largest, KINDS[ggml_type].largest)
    for importance in (None, IMPORTANCE, np.where(np.arange(N_COLUMNS) % 64 < 32, IMPORTANCE, np.float32(0))):
        data = search_matrix(weights, ggml_type, importance)
        assert first_bad_row(data, ggml_type) is None
        assert not dequantize(data, ggml_type)[(weights == 0).all(axis=1)].any()


@pytest.mark.parametrize("source_type", [GgmlType.F32, GgmlType.F16, GgmlType.BF16], ids=lambda t: t.name)
def test_rows_do_not_depend_on_others(source_type: GgmlType) -> None:
    stored = stored_as(WEIGHTS, source_type)
    kernel = wide_kernel(GgmlType.Q4_K, source_type, True)
    assert kernel is not None
    whole = np.empty((40, row_bytes(GgmlType.Q4_K, N_COLUMNS)), np.uint8)
    part = np.empty_like(whole[7:20])
    kernel(stored, whole, IMPORTANCE)
    kernel(stored[7:20], part, IMPORTANCE)
    np.testing.assert_array_equal(part, whole[7:20])
    assert weighted_error(WEIGHTS, whole, GgmlType.Q4_K, IMPORTANCE) < 0.02 * float((IMPORTANCE * WEIGHTS**2).sum())


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e8])
def test_weights_that_no_block_holds_are_refused(wrong: float) -> None:
    weights = WEIGHTS.copy()
    weights[3, 5] = wrong
    with pytest.raises(WeightsError, match=r"NaN or infinity|too large for Q4_K"):
        search_matrix(weights, GgmlType.Q4_K)


def test_types_without_a_search_are_refused() -> None:
    with pytest.raises(UsageError, match="IQ1_S"):
        search_matrix(WEIGHTS, GgmlType.IQ1_S)


def test_run_with_the_wide_search_says_so_and_differs(tmp_path: Path) -> None:
    source = write_random(tmp_path / "source.gguf", Model(n_trunk=1, width=256, ffn=256, vocab=64))
    quantize(source, tmp_path / "usual", ["Q4_K_M"])
    report = quantize(source, tmp_path / "wide", ["Q4_K_M"], search="wide")
    usual, wide = (read_tensors(tmp_path / folder / "Q4_K_M.gguf") for folder in ("usual", "wide"))

    assert "wide search" in " ".join(report.kernels.values())
    assert read_gguf(tmp_path / "wide" / "Q4_K_M.gguf").metadata["mimo_gguf.search"].value == "wide"
    assert "mimo_gguf.search" not in read_gguf(tmp_path / "usual" / "Q4_K_M.gguf").metadata
    assert {name: info for name, (info, _) in usual.items()} == {name: info for name, (info, _) in wide.items()}
    changed = {name for name in usual if not np.array_equal(usual[name][1], wide[name][1])}
    assert changed == {name for name, (info, _) in usual.items() if info.ggml_type in KINDS}
