"""Errors of weights against plain float64 arithmetic, and what is far beyond a type's own rounding."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, row_bytes
from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.model_rules import MATRIX_TYPES
from mimo_gguf.quantization.kernels.libggml import load_libggml
from mimo_gguf.reference.decode import decode_rows
from mimo_gguf.reference.model import ReferenceModel, open_reference
from mimo_gguf.reference.weight_errors import TensorError, expected_snr_db, snr_db, weight_errors
from tests.tiny_models import make_model, quantized

SLOW_TO_WRITE = {GgmlType.IQ1_S, GgmlType.IQ1_M, GgmlType.IQ2_S, GgmlType.IQ2_XS, GgmlType.IQ2_XXS}  # large tables


def errors_of(model: ReferenceModel, original: ReferenceModel) -> dict[str, TensorError]:
    infos = [tensor.info for tensor in model.source.tensors]
    return {error.name: error for error in weight_errors(model, original, infos)}


def test_errors_of_a_quantized_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimo_gguf.reference.weight_errors._PIECE_WEIGHTS", 1000)  # many pieces, the last shorter
    path = make_model(tmp_path)
    with open_reference(quantized(path, "Q4_0")) as model, open_reference(path) as original:
        found = errors_of(model, original)
        for name in ("blk.1.ffn_down.weight", "token_embd.weight", "blk.2.nextn.eh_proj.weight"):
            wanted = original.weights(name).astype(np.float64)
            difference = model.weights(name) - wanted
            error = found[name]
            assert error.ggml_type.name in ("Q4_0", "Q4_1") and error.original_type is GgmlType.F32
            assert error.largest == pytest.approx(np.abs(difference).max(), rel=1e-6)
            assert error.rms == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-5)
            assert error.snr_db == pytest.approx(10 * np.log10((wanted**2).sum() / (difference**2).sum()), abs=1e-3)
            assert not error.is_foreign and not error.is_exact
        norms = [error for error in found.values() if error.is_vector]
        assert len(norms) > 10 and all(error.is_exact and error.snr_db == math.inf for error in norms)


def test_weights_of_another_model_are_foreign(tmp_path: Path) -> None:
    with (
        open_reference(make_model(tmp_path / "a")) as model,
        open_reference(make_model(tmp_path / "b", seed=1)) as other,
    ):
        assert all(error.is_foreign for error in errors_of(model, other).values())


def test_swapped_halves_are_foreign(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    with open_gguf(path) as source, open_reference(path) as original:
        name = "blk.2.nextn.eh_proj.weight"
        swapped = np.roll(original.weights(name), 64, axis=1)

        def read(first: int, last: int, out: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
            out[...] = np.ascontiguousarray(swapped[first:last]).view(np.uint8)

        tensors = tuple(replace(t, read_rows=read) if t.info.name == name else t for t in source.tensors)
        found = errors_of(ReferenceModel(replace(source, tensors=tensors)), original)
    assert [error.name for error in found.values() if error.is_foreign] == [name]


@pytest.mark.parametrize("kind", sorted(MATRIX_TYPES - SLOW_TO_WRITE - {GgmlType.F32}), ids=lambda kind: kind.name)
def test_what_a_type_is_expected_to_keep_is_below_what_ggml_keeps(kind: GgmlType) -> None:
    """Gaussian weights, and weights with outliers, which block types keep worse."""
    rng = np.random.default_rng(0)
    for values in (rng.standard_normal((64, 512)), rng.standard_t(4, (64, 512))):
        weights = values.astype(np.float32)
        raw = np.empty((64, row_bytes(kind, 512)), np.uint8)
        load_libggml().quantize(weights, GgmlType.F32, kind, raw, np.ones(512, np.float32))
        decoded = np.empty_like(weights)
        decode_rows(raw, kind, decoded)
        kept = snr_db(float((weights**2).sum()), float(((decoded - weights) ** 2).sum()))
        assert expected_snr_db(kind) + 0.9 < kept
        assert kind in FLOAT_TYPES or kept < expected_snr_db(kind) + 16


def test_ratios_at_the_edges() -> None:
    assert snr_db(1.0, 0.0) == math.inf
    assert snr_db(0.0, 1.0) == -math.inf
    assert math.isnan(snr_db(math.nan, 1.0))
    error = TensorError("x", GgmlType.Q8_0, GgmlType.F32, 4, False, math.nan, math.nan, 1.0)
    assert error.is_foreign and not error.is_exact
