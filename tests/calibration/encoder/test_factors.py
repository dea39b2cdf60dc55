"""The triangular factor agrees with LAPACK's, and statistics that cannot be used are refused."""

from __future__ import annotations

import numpy as np
import pytest

from mimo_gguf.calibration.encoder.factors import factors
from mimo_gguf.core.errors import WeightsError
from tests.calibration.encoder.grams import correlated_inputs, gram_of


@pytest.mark.parametrize("n_columns", [96, 256, 640])
def test_factor_is_the_reversed_cholesky_factor(n_columns: int) -> None:
    gram = gram_of(correlated_inputs(2, 900, n_columns))
    known = factors(gram, 0.1)

    damped = gram.astype(np.float64) + 0.1 * gram.diagonal().mean(dtype=np.float64) * np.eye(n_columns)
    root = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    feedback = known.feedback[:n_columns, :n_columns]
    np.testing.assert_allclose(feedback, root / root.diagonal(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(known.gram[:n_columns, :n_columns], damped, rtol=1e-6)
    weights = root.diagonal() ** 2
    ratio = known.weights[:n_columns] / weights
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert known.n_columns == n_columns


@pytest.mark.parametrize(
    ("gram", "words"),
    [
        (np.zeros((32, 32), np.float32), "all zero"),
        (np.full((32, 32), np.nan, np.float32), "NaN or infinity"),
        (np.diag([np.float32(np.inf)] * 32), "NaN or infinity"),
        (np.eye(32, dtype=np.float32) - np.float32(2) * (1 - np.eye(32, dtype=np.float32)), "not positive definite"),
    ],
)
def test_useless_statistics_are_refused(gram: np.ndarray, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        factors(gram, 0.1)
