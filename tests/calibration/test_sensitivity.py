"""Predicted costs against the divergence that is really measured when a matrix is written in a type."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mimo_gguf.calibration.costs import decode, embedding_costs, encode_plainly, matrix_costs, sample_rows
from mimo_gguf.calibration.sensitivity import measure_costs
from mimo_gguf.calibration.work import open_work
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.reference.forward import block, embed, final_norm, head_logits, read_block
from mimo_gguf.reference.model import ReferenceModel, open_reference

Q4_0, Q4_K, Q6_K = GgmlType.Q4_0, GgmlType.Q4_K, GgmlType.Q6_K
TRAINED = Path(__file__).parents[2] / "examples/mimo-tiny"
VOCABULARY = 900  # of the trained model's tokens that are words
CHECKED = (
    "token_embd",
    "blk.0.attn_q",
    "blk.0.attn_v",
    "blk.1.attn_output",
    "blk.1.ffn_up",
    "blk.2.ffn_down",
    "output",
)


@pytest.fixture(scope="module")
def model() -> Iterator[ReferenceModel]:
    with open_reference(TRAINED) as opened:
        yield opened


def log_probabilities(model: ReferenceModel, tokens: np.ndarray) -> np.ndarray:
    x = embed(model, tokens)
    for number in range(model.n_trunk_blocks):
        x = block(x, read_block(model, number))
    logits = head_logits(model, final_norm(model, x)).astype(np.float64)
    found: np.ndarray = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return found


class Altered:
    """The model with one matrix as a type leaves it, encoded with the importance of what the matrix reads."""

    def __init__(self, model: ReferenceModel, name: str, values: np.ndarray) -> None:
        self._model, self._name, self._values = model, name, values

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def weights(self, name: str) -> np.ndarray:
        return self._values if name == self._name else self._model.weights(name)

    def chunks(self, name: str) -> object:
        return iter([(0, self._values)]) if name == self._name else self._model.chunks(name)


def test_predicted_costs_are_near_the_measured_divergence(model: ReferenceModel, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4, 64)).astype(np.int32)
    work, _ = open_work(tmp_path / "work", "test")
    costs = measure_costs(model, tokens, work, (Q4_K, Q6_K))
    assert len(costs) == 2 + 3 * 7
    base = [log_probabilities(model, window) for window in tokens]
    for name in (f"{part}.weight" for part in CHECKED):
        weights = model.weights(name)
        altered = Altered(model, name, decode(encode_plainly(weights, Q4_K, None), Q4_K, weights.shape[1]))
        divergences = [
            np.sum(np.exp(p) * (p - log_probabilities(altered, window)), axis=1)  # type: ignore[arg-type]
            for p, window in zip(base, tokens, strict=True)
        ]
        assert 0.25 < costs[name][Q4_K] / np.mean(divergences) < 2.5, name
        assert costs[name][Q6_K] < costs[name][Q4_K] / 4
    assert measure_costs(model, tokens, work, (Q6_K,)) == costs  # read again, nothing computed


def test_an_interrupted_measurement_goes_on(model: ReferenceModel, tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, 16)).astype(np.int32)
    whole, _ = open_work(tmp_path / "whole", "test")
    costs = measure_costs(model, tokens, whole, (Q4_0,))
    steps: list[str] = []

    def stop(stage: str, done: int, total: int) -> None:
        steps.append(stage)
        if len(steps) in (2, 7):  # in the forward pass, and in the backward pass
            raise KeyboardInterrupt

    work, _ = open_work(tmp_path / "work", "test")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            measure_costs(model, tokens, work, (Q4_0,), stop)
    assert steps[-1] == "backward"
    assert measure_costs(model, tokens, work, (Q4_0,), stop) == costs


def test_costs_of_all_rows_are_exact() -> None:
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((10, 64)).astype(np.float32)
    inputs, sensitivity = rng.standard_normal((30, 64)).astype(np.float32), rng.random(10)
    sample = sample_rows(sensitivity, 4, 6, 0)
    found = matrix_costs(weights[sample.rows], inputs, sensitivity, sample, (Q4_0,))
    importance = np.mean(inputs**2, axis=0)
    difference = decode(encode_plainly(weights, Q4_0, importance), Q4_0, 64) - weights
    assert found[Q4_0] == pytest.approx(
        0.5 * float(sensitivity @ np.mean((inputs @ difference.T) ** 2, axis=0)), rel=1e-4
    )
    assert matrix_costs(weights[sample.rows], inputs, sensitivity, sample, (Q4_K,)) == {}
    rows = np.repeat(weights[:1], 5, axis=0)
    plain = decode(encode_plainly(weights[:1], Q4_0, None), Q4_0, 64) - weights[:1]
    assert embedding_costs(rows, np.ones(64), (Q4_0,))[Q4_0] == pytest.approx(0.5 * float(np.sum(plain**2)), rel=1e-5)


def test_a_sample_stands_for_the_rows_that_it_leaves_out() -> None:
    sensitivity = np.array([5.0, 1.0, 1.0, 9.0, 1.0, 1.0])
    sample = sample_rows(sensitivity, 2, 2, 0)
    assert sample.top.tolist() == [0, 3]
    assert len(sample.rest) == 2
    assert sample.total(sensitivity[sample.rows]) == pytest.approx(sensitivity.sum())
