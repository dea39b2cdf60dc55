"""Divergence against formulas written out in float64, and against llama-perplexity's own with its 16-bit rounding."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from mimo_gguf.core.errors import WeightsError
from mimo_gguf.quality.divergence import (
    Figure,
    TokenScores,
    compare_rows,
    mean_of,
    score_rows,
    share_of,
    summarize,
)

Floats = NDArray[np.float32]


def rows(n: int, n_vocab: int, seed: int = 0, noise: float = 0.3) -> tuple[Floats, Floats, NDArray[np.int32]]:
    """Logits of a base and of a model near it, and the tokens that come."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((n, n_vocab)) * 4 + 7
    other = base + rng.standard_normal((n, n_vocab)) * noise - 1.5
    return base.astype(np.float32), other.astype(np.float32), rng.integers(0, n_vocab, n).astype(np.int32)


def log_probs(logits: Floats) -> list[float]:
    """The definition, each sum exact."""
    values = [float(value) for value in logits]
    largest = max(values)
    log_sum = largest + math.log(math.fsum(math.exp(value - largest) for value in values))
    return [value - log_sum for value in values]


def divergence(base: list[float], other: list[float]) -> float:
    return math.fsum(math.exp(b) * (b - o) for b, o in zip(base, other, strict=True))


# ---- per token


@pytest.mark.parametrize(("n_vocab", "noise"), [(7, 1.0), (300, 0.3), (5000, 0.01), (12_000, 0.1)])
def test_tokens_are_compared_as_the_definitions_say(n_vocab: int, noise: float) -> None:
    base, other, targets = rows(5, n_vocab, noise=noise)
    scores = compare_rows(base, other, targets)
    for i, target in enumerate(targets):
        b, o = log_probs(base[i]), log_probs(other[i])
        assert scores.kl is not None
        assert scores.base_nll is not None
        assert scores.base_p is not None
        assert scores.same_top is not None
        assert scores.kl[i] == pytest.approx(divergence(b, o), rel=1e-5, abs=4e-8)
        assert scores.nll[i] == pytest.approx(-o[target], abs=2e-6)
        assert scores.base_nll[i] == pytest.approx(-b[target], abs=2e-6)
        assert scores.p[i] == pytest.approx(math.exp(o[target]), rel=2e-6)
        assert scores.base_p[i] == pytest.approx(math.exp(b[target]), rel=2e-6)
        assert scores.top[i] == o.index(max(o))
        assert scores.same_top[i] == (o.index(max(o)) == b.index(max(b)))


def test_a_model_does_not_differ_from_itself_or_from_shifted_logits() -> None:
    base, _, targets = rows(20, 999)
    for same in (base, base + np.float32(4)):
        scores = compare_rows(base, same, targets)
        assert scores.kl is not None
        assert scores.same_top is not None
        assert np.abs(scores.kl).max() < 1e-6
        assert scores.same_top.all()


def test_without_a_base_the_same_without_the_base() -> None:
    base, other, targets = rows(9, 321)
    alone, both = score_rows(other, targets), compare_rows(base, other, targets)
    assert alone.kl is None
    assert alone.base_nll is None
    assert alone.base_p is None
    assert alone.same_top is None
    for name in ("nll", "p", "top"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(both, name))


@pytest.mark.parametrize("n_vocab", [50, 150_000])
def test_threads_and_pieces_change_nothing(n_vocab: int) -> None:
    base, other, targets = rows(7, n_vocab)
    whole = compare_rows(base, other, targets)
    row_by_row = [compare_rows(base[i : i + 1], other[i : i + 1], targets[i : i + 1]) for i in range(7)]
    with ThreadPoolExecutor(3) as executor:
        shared = compare_rows(base, other, targets, executor=executor, n_threads=3)
    for scores in (TokenScores.joined(row_by_row), shared):
        for name in TokenScores.__slots__:
            np.testing.assert_array_equal(getattr(scores, name), getattr(whole, name))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("is_base", [True, False])
def test_logits_that_are_not_numbers_are_refused(bad: float, is_base: bool) -> None:
    base, other, targets = rows(3, 11)
    (base if is_base else other)[1] = bad
    with pytest.raises(WeightsError, match="NaN or infinite"):
        compare_rows(base, other, targets)


# ---- in all


def test_the_summary_is_what_the_definitions_say() -> None:
    base, other, targets = rows(400, 60)
    scores = compare_rows(base, other, targets)
    found = summarize(scores)
    assert found.divergence is not None
    b = [log_probs(row) for row in base]
    o = [log_probs(row) for row in other]
    n = len(targets)
    nll = [-o[i][t] for i, t in enumerate(targets)]
    base_nll = [-b[i][t] for i, t in enumerate(targets)]
    kl = sorted(divergence(x, y) for x, y in zip(b, o, strict=True))
    shift = sorted(math.exp(-x) - math.exp(-y) for x, y in zip(nll, base_nll, strict=True))

    def mean(values: list[float]) -> tuple[float, float]:
        m = math.fsum(values) / n
        return m, math.sqrt((math.fsum(v * v for v in values) / n - m * m) / (n - 1))

    def about(figure: Figure, value: tuple[float, float]) -> None:
        assert (figure.value, figure.error) == pytest.approx(value, rel=1e-5, abs=1e-7)

    ln, base_ln = mean(nll), mean(base_nll)
    covariance = (math.fsum(x * y for x, y in zip(nll, base_nll, strict=True)) / n - ln[0] * base_ln[0]) / (n - 1)
    about(found.perplexity, (math.exp(ln[0]), math.exp(ln[0]) * ln[1]))
    about(found.divergence.base_perplexity, (math.exp(base_ln[0]), math.exp(base_ln[0]) * base_ln[1]))
    about(found.divergence.ln_ratio, (ln[0] - base_ln[0], math.sqrt(ln[1] ** 2 + base_ln[1] ** 2 - 2 * covariance)))
    about(found.divergence.kl, mean(kl))
    about(found.divergence.shift, mean(shift))
    square = mean([value**2 for value in shift])
    about(found.divergence.shift_rms, (math.sqrt(square[0]), 0.5 / math.sqrt(square[0]) * square[1]))
    same = sum(x.index(max(x)) == y.index(max(y)) for x, y in zip(b, o, strict=True)) / n
    about(found.divergence.same_top, (same, math.sqrt(same * (1 - same) / (n - 1))))
    assert found.n_tokens == n
    assert found.divergence.kl_max == pytest.approx(kl[-1], rel=1e-5)
    for values, table in ((kl, found.divergence.kl_percentiles), (shift, found.divergence.shift_percentiles)):
        for percent, value in table.items():
            place = percent / 100 * (n - 1)
            low, rest = int(place), place - int(place)
            expected = (1 - rest) * values[low] + rest * values[min(low + 1, n - 1)]
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_one_token_has_no_error_and_none_is_refused() -> None:
    assert mean_of(np.array([3.0])) == Figure(3.0, 0.0)
    assert share_of(np.array([True])) == Figure(1.0, 0.0)
    with pytest.raises(ValueError, match="no tokens"):
        summarize(score_rows(np.zeros((0, 5), np.float32), np.zeros(0, np.int32)))


# ---- llama-perplexity's own formulas, with the rounding of its file of logits


def kept_by_the_tool(logits: Floats) -> NDArray[np.float64]:
    """Log-probabilities as they come back from llama-perplexity's file: 16 bits over the 16 nats below the largest."""
    largest, smallest = logits.max(), max(logits.min(), logits.max() - np.float32(16))
    log_sum = np.float32(np.log(np.exp(logits - largest).sum(dtype=np.float64)))
    scale = np.float32((largest - smallest) / np.float32(65535))
    codes = np.rint(np.maximum(logits - smallest, 0) / scale)
    return np.asarray(scale * codes + np.float64(smallest - largest - log_sum), np.float64)


def figures_of_the_tool(base: Floats, other: Floats, target: int) -> tuple[float, float, float]:
    """Divergence, the base's minus log-probability and the shift, as the tool computes them from its file."""
    kept, log_prob = kept_by_the_tool(base), log_probs(other)
    kl = math.fsum(math.exp(b) * (b - o) for b, o in zip(kept, log_prob, strict=True) if b > -16)
    return kl, -float(kept[target]), math.exp(log_prob[target]) - math.exp(kept[target])


def test_the_tool_finds_the_same_to_its_rounding() -> None:
    base, other, targets = rows(40, 6000, noise=0.1)
    scores = compare_rows(base, other, targets)
    assert scores.kl is not None
    assert scores.base_nll is not None
    assert scores.base_p is not None
    tool = np.array([figures_of_the_tool(b, o, int(t)) for b, o, t in zip(base, other, targets, strict=True)])
    likely = scores.base_nll < 14  # the file does not hold what is less likely
    step = 16 / 65535
    assert likely.sum() > 5
    assert np.abs(scores.base_nll - tool[:, 1])[likely].max() <= step
    assert np.abs(scores.p - scores.base_p - tool[:, 2]).max() <= step
    assert np.abs(scores.kl - tool[:, 0]).max() <= step
    assert abs(scores.kl.mean() - tool[:, 0].mean()) < 2e-5 < scores.kl.mean()


def test_with_the_tools_rounding_the_figures_are_the_tools() -> None:
    """Its rounded probabilities do not add up to 1; apart from that known factor the figures are equal."""
    base, other, targets = rows(40, 3000, noise=0.2)
    kept = np.array([kept_by_the_tool(row) for row in base])
    held = np.where(kept > -16, kept, -200).astype(np.float32)
    scores = compare_rows(held, other, targets)
    assert scores.kl is not None
    for i, target in enumerate(targets):
        kl, base_nll, _ = figures_of_the_tool(base[i], other[i], int(target))
        total = math.fsum(math.exp(value) for value in kept[i] if value > -16)
        assert abs(total - 1) < 1e-3
        assert scores.kl[i] == pytest.approx(kl / total - math.log(total), rel=1e-5, abs=1e-6)
        if kept[i][target] > -16:
            assert scores.base_nll is not None
            assert scores.base_nll[i] == pytest.approx(base_nll + math.log(total), abs=3e-6)
