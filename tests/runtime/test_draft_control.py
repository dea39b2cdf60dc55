"""The "never slower" control on made-up timings: what it decides, how fast, and what deciding costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from mimo_gguf.runtime.draft_control import DraftControl


def simulate(
    control: DraftControl,
    n_tokens: int,
    *,
    plain_s: float = 0.1,
    cycle_s: Callable[[int], float] = lambda _: 0.12,
    acceptance: Callable[[int], float] = lambda _: 0.8,
    noise: float = 0.05,
    seed: int = 0,
) -> tuple[float, float]:
    """(seconds taken, share of drafted cycles) for `n_tokens`; the functions take the number of tokens so far."""
    rng = np.random.default_rng(seed)
    made, seconds, drafted = 0, 0.0, 0
    for n_cycles in itertools.count(1):
        draft = control.wants_draft()
        cost = (cycle_s(made) if draft else plain_s) * float(rng.lognormal(0, noise))
        if rng.random() < 0.01:
            cost *= 10  # a page fault
        n = 1 + int(draft and rng.random() < acceptance(made))
        control.record(drafted=draft, seconds=cost, n_tokens=n)
        made, seconds, drafted = made + n, seconds + cost, drafted + draft
        if made >= n_tokens:
            return seconds, drafted / n_cycles
    raise AssertionError


@pytest.mark.parametrize("seed", range(5))
def test_stays_on_when_it_pays(seed: int) -> None:
    control = DraftControl()
    _, share = simulate(control, 2000, seed=seed)
    assert control.verdict.drafting and share > 0.95
    assert control.verdict.speed_up == pytest.approx(1.8 * 0.1 / 0.12, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_goes_off_when_it_does_not(seed: int) -> None:
    control = DraftControl()
    seconds, share = simulate(control, 2000, cycle_s=lambda _: 0.2, acceptance=lambda _: 0.6, seed=seed)
    assert not control.verdict.drafting and share < 0.06
    plain_only, _ = simulate(
        DraftControl(), 2000, plain_s=0.1, cycle_s=lambda _: 0.1, acceptance=lambda _: 0.0, seed=seed
    )
    assert seconds < plain_only * 1.04


def test_follows_a_change_in_acceptance() -> None:
    """Code first (0.9), then prose where drafting loses (0.2), then code again."""
    control = DraftControl()
    simulate(control, 1000, acceptance=lambda _: 0.9)
    assert control.verdict.drafting
    simulate(control, 400, acceptance=lambda _: 0.0)
    assert not control.verdict.drafting
    simulate(control, 3000, acceptance=lambda _: 0.9)
    assert control.verdict.drafting
    assert control.verdict.n_switches == 2


def test_does_not_flicker_at_break_even() -> None:
    control = DraftControl()
    seconds, _ = simulate(control, 5000, cycle_s=lambda _: 0.18, acceptance=lambda _: 0.8)
    assert control.verdict.n_switches <= 3
    assert seconds < 5000 * 0.1 * 1.2


def test_forced_drafting_always_drafts() -> None:
    control = DraftControl(adaptive=False)
    _, share = simulate(control, 300, cycle_s=lambda _: 9.0)
    assert share == 1.0 and control.verdict.drafting


def test_nothing_measured_nothing_claimed() -> None:
    verdict = DraftControl().verdict
    assert verdict.drafting and verdict.speed_up is None and verdict.plain_tokens_per_s is None
