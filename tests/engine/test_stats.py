"""What is counted, and when too many wrong drafts are worth a word."""

from __future__ import annotations

import pytest
from scipy import stats

from mimo_gguf.engine.stats import SessionStats, upper_bound


@pytest.mark.parametrize(
    ("n_accepted", "n_drafted", "warned"),
    [(0, 0, False), (0, 12, False), (0, 13, True), (3, 40, True), (8, 40, False), (290, 1000, False), (250, 1000, True),
     (900, 1000, False)],
)  # fmt: skip
def test_few_drafts_are_enough_where_none_is_right(n_accepted: int, n_drafted: int, warned: bool) -> None:
    counted = SessionStats(1, n_drafted=[n_drafted], n_accepted=[n_accepted])
    assert (counted.warning is not None) == warned


@pytest.mark.parametrize(("n_right", "n"), [(0, 13), (3, 40), (250, 1000), (9, 10)])
def test_the_bound_is_wilsons(n_right: int, n: int) -> None:
    for z in (1.64, 2.33):
        level = 2 * stats.norm.cdf(z) - 1
        interval = stats.binomtest(n_right, n).proportion_ci(confidence_level=level, method="wilson")
        assert upper_bound(n_right / n, n, z) == pytest.approx(interval.high, abs=1e-6)


def test_drafts_are_counted_as_far_as_they_were_tested() -> None:
    counted = SessionStats(3)
    counted.add_pass(3, 1, whole=True)  # right, wrong, never looked at
    counted.add_pass(3, 3, whole=True)
    counted.add_pass(3, 1, whole=False)  # the answer ended after the first
    counted.add_pass(0, 0, whole=True)  # no draft
    assert (counted.n_drafted, counted.n_accepted) == ([3, 2, 1], [3, 1, 1])
    assert counted.acceptance_by_place == [1.0, 0.5, 1.0]
    assert counted.n_passes == 4
    assert SessionStats(2).acceptance is None and SessionStats(2).acceptance_by_place == [None, None]
