"""Scores and comparisons, against scipy and numpy."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from mimo_gguf.evaluation.scores import Graded, compare, score_of, sign_test


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (3, 12), (12, 3), (7, 7), (40, 61), (0, 200)])
def test_the_sign_test_is_the_exact_binomial_test(better: int, worse: int) -> None:
    wanted = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert sign_test(better, worse) == pytest.approx(wanted, rel=1e-9)


def answers(seed: int, n: int, k: int, easy: float) -> list[Graded]:
    drawn = random.Random(seed)
    return [Graded(str(p), r, float(drawn.random() < easy)) for p in range(n) for r in range(1, k + 1)]


def test_a_score_is_the_mean_over_problems_with_its_error() -> None:
    given = answers(1, 40, 8, 0.7)
    means = np.array([each.score for each in given], float).reshape(40, 8).mean(axis=1)
    score = score_of(given)
    assert score.score == pytest.approx(means.mean()) and score.error == pytest.approx(stats.sem(means))
    assert (score.n_problems, score.n_answers, score.n_failed, score.n_cut) == (40, 320, 0, 0)


def test_what_failed_is_counted_and_in_no_figure() -> None:
    given = [Graded("a", 1, 1.0, True, 10, 2.0), Graded("a", 2, None), Graded("b", 1, 0.0, False, 30)]
    score = score_of(given)
    assert (score.score, score.n_answers, score.n_failed, score.n_cut) == (0.5, 2, 1, 1)
    assert (score.tokens, score.seconds) == (20, 2.0)
    nothing = score_of([Graded("a", 1, None)])
    assert (nothing.score, nothing.error, nothing.tokens, nothing.n_failed) == (None, None, None, 1)


def test_a_comparison_is_paired() -> None:
    """Of answers to the same problem and repeat, in whatever order; what only one has does not count."""
    base, other = answers(2, 60, 4, 0.8), answers(3, 60, 4, 0.5)
    found = compare([*reversed(other), Graded("only mine", 1, 1.0)], [*base, Graded("0", 99, 0.0)])
    assert found is not None
    mine, theirs = (np.array([e.score for e in each], float).reshape(60, 4).mean(axis=1) for each in (other, base))
    difference = mine - theirs
    error = stats.sem(difference)
    assert found.difference == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, difference.mean(), error))
    assert (found.n_better, found.n_worse) == ((difference > 0).sum(), (difference < 0).sum())
    assert found.p == pytest.approx(stats.binomtest(found.n_better, found.n_better + found.n_worse).pvalue)


def test_nothing_in_common_is_no_comparison() -> None:
    assert compare([Graded("a", 1, 1.0)], [Graded("a", 1, 0.0)]) is None
    assert compare([Graded("a", 1, 1.0)], [Graded("b", 1, 0.0)]) is None
