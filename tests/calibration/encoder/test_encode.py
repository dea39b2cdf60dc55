"""The encoder's bytes: valid for any weights, better than llama.cpp's for inputs like those seen, and always alike."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.quants import dequantize
from numpy.typing import NDArray

from mimo_gguf.calibration.encoder.encode import encode_matrix
from mimo_gguf.calibration.encoder.factors import factors
from mimo_gguf.core.errors import UsageError, WeightsError
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.quantization.block_scales import first_bad_row
from mimo_gguf.quantization.kernels.libggml import load_libggml
from mimo_gguf.quantization.search.kinds import KINDS
from tests.calibration.encoder.grams import correlated_inputs, gram_of, output_error
from tests.quantization.kernels.data_sets import DATA_SETS
from tests.quantization.kernels.data_sets import weights as awkward_weights

N_COLUMNS = 512
Numbers = NDArray[np.float32]

SEEN = gram_of(correlated_inputs(3, 4000, N_COLUMNS))
HELD_OUT = gram_of(correlated_inputs(4, 4000, N_COLUMNS))
FACTORS = factors(SEEN, 0.1)


def ordinary_weights(n_rows: int) -> Numbers:
    return (np.random.default_rng(5).standard_normal((n_rows, N_COLUMNS)) * 0.02).astype(np.float32)


def decoded(data: NDArray[np.uint8], ggml_type: GgmlType) -> Numbers:
    values: Numbers = dequantize(data, ggml_type)
    return values


def by_importance(weights: Numbers, ggml_type: GgmlType) -> Numbers:
    """What llama.cpp makes of the weights with an importance matrix of the same inputs."""
    out = np.empty((len(weights), row_bytes(ggml_type, N_COLUMNS)), np.uint8)
    load_libggml().quantize(weights, GgmlType.F32, ggml_type, out, np.ascontiguousarray(SEEN.diagonal()))
    return decoded(out, ggml_type)


@pytest.mark.parametrize("ggml_type", KINDS, ids=lambda t: t.name)
def test_outputs_are_closer_than_with_importance_alone(ggml_type: GgmlType) -> None:
    weights = ordinary_weights(40)
    values = decoded(encode_matrix(weights, ggml_type, FACTORS), ggml_type)

    theirs = output_error(weights, by_importance(weights, ggml_type), HELD_OUT)
    assert output_error(weights, values, HELD_OUT) < 0.75 * theirs


@pytest.mark.parametrize("ggml_type", KINDS, ids=lambda t: t.name)
def test_each_pass_of_the_descent_lowers_the_error(ggml_type: GgmlType) -> None:
    weights, damping = ordinary_weights(40), np.float32(FACTORS.added) * np.eye(N_COLUMNS, dtype=np.float32)
    errors = []
    for passes in range(4):
        values = decoded(encode_matrix(weights, ggml_type, FACTORS, passes=passes), ggml_type)
        errors.append(output_error(weights, values, SEEN + damping))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < errors[0]


@pytest.mark.parametrize("ggml_type", KINDS, ids=lambda t: t.name)
def test_blocks_are_valid_whatever_the_weights(ggml_type: GgmlType) -> None:
    weights = np.concatenate([awkward_weights(name, 2, N_COLUMNS) for name in DATA_SETS])
    weights[::2, 256 + 64 :] = 0  # columns that only fill the row up
    weights = weights.clip(-KINDS[ggml_type].largest, KINDS[ggml_type].largest)
    encoded = encode_matrix(weights, ggml_type, FACTORS)

    assert first_bad_row(encoded, ggml_type) is None
    values = decoded(encoded, ggml_type)
    assert np.isfinite(values).all()
    zero_rows = (weights == 0).all(axis=1)
    assert zero_rows.sum() == 4
    assert not values[zero_rows].any()


@pytest.mark.parametrize("ggml_type", KINDS, ids=lambda t: t.name)
def test_columns_without_weights_or_inputs_stay_zero(ggml_type: GgmlType) -> None:
    weights, gram = ordinary_weights(16), SEEN.copy()
    weights[:, 320:] = gram[320:] = gram[:, 320:] = 0
    values = decoded(encode_matrix(weights, ggml_type, gram), ggml_type)
    assert values[:, :320].any()
    assert not values[:, 320:].any()


@pytest.mark.parametrize("ggml_type", [GgmlType.Q3_K, GgmlType.Q4_K, GgmlType.IQ4_XS], ids=lambda t: t.name)
def test_bytes_do_not_depend_on_threads_or_on_other_rows(ggml_type: GgmlType) -> None:
    weights = ordinary_weights(300)
    whole = encode_matrix(weights, ggml_type, FACTORS, n_threads=1)
    for n_threads in (2, 3):
        threaded = encode_matrix(weights, ggml_type, SEEN, damping=0.1, n_threads=n_threads)
        np.testing.assert_array_equal(threaded, whole)

    others = weights.copy()
    others[::3] *= 2
    encoded = encode_matrix(others, ggml_type, FACTORS)
    same = np.arange(300) % 3 != 0
    np.testing.assert_array_equal(encoded[same], whole[same])
    assert (encoded[~same] != whole[~same]).any(axis=1).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_refused(wrong: float) -> None:
    weights = ordinary_weights(16)
    weights[7, 300] = wrong
    with pytest.raises(WeightsError, match="NaN or infinity"):
        encode_matrix(weights, GgmlType.Q4_K, FACTORS)


def test_weights_beyond_the_type_are_refused() -> None:
    weights = ordinary_weights(16)
    weights[7, 300] = -1e8
    with pytest.raises(WeightsError, match="1e\\+08 is too large for Q4_K"):
        encode_matrix(weights, GgmlType.Q4_K, FACTORS)


def test_types_without_a_search_are_refused() -> None:
    with pytest.raises(UsageError, match="IQ1_S"):
        encode_matrix(ordinary_weights(16), GgmlType.IQ1_S, FACTORS)


def test_statistics_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="512 columns"):
        encode_matrix(ordinary_weights(16)[:, :256], GgmlType.Q4_K, FACTORS)
