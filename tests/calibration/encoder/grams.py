"""Gram matrices of inputs that are correlated, as a model's are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]


def gram_of(inputs: Numbers) -> Numbers:
    gram: Numbers = np.matmul(inputs.T, inputs) / np.float32(len(inputs))
    return gram


def correlated_inputs(seed: int, n_inputs: int, n_columns: int) -> Numbers:
    """Inputs of which a tenth of the directions carries most, and some columns are loud. One mixture for all seeds."""
    mixture = np.random.default_rng(0).standard_normal((n_columns // 4, n_columns)) / np.sqrt(n_columns)
    loudness = np.exp(np.random.default_rng(1).standard_normal(n_columns))
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((n_inputs, len(mixture))) @ mixture + 0.3 * rng.standard_normal((n_inputs, n_columns))
    loud: Numbers = (inputs * loudness).astype(np.float32)
    return loud


def output_error(weights: Numbers, values: Numbers, gram: Numbers) -> float:
    """tr((W - V) Gram (W - V)^T), in float64."""
    errors = (weights.astype(np.float64) - values).astype(np.float64)
    return float(np.einsum("rc,rc->", errors @ gram.astype(np.float64), errors))
