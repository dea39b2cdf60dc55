"""The "never slower" control on made-up timings: what it decides, how fast, and what deciding costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mimo_gguf.engine.draft_control import DraftControl
from mimo_gguf.engine.draft_gate import WARM_UP


def simulate(
    control: DraftControl,
    n_tokens: int,
    *,
    plain_s: float = 0.1,
    cycle_s: Callable[[int], float] = lambda _: 0.12,
    acceptance: Callable[[int], float] = lambda _: 0.8,
    noise: float = 0.05,
    page_faults: float = 0.01,
    seed: int = 0,
) -> tuple[float, float]:
    """(seconds taken, share of drafted cycles) for `n_tokens`; the functions take the number of tokens so far."""
    rng = np.random.default_rng(seed)
    made, seconds, drafted = 0, 0.0, 0
    for n_cycles in itertools.count(1):
        draft = control.wants_draft()
        cost = (cycle_s(made) if draft else plain_s) * float(rng.lognormal(0, noise))
        if rng.random() < page_faults:
            cost *= 10
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
@pytest.mark.parametrize(("acceptance", "n_tokens", "most"), [(0.6, 2000, 1.02), (0.0, 2000, 1.02), (0.0, 200, 1.05)])
def test_goes_off_when_it_does_not(acceptance: float, n_tokens: int, most: float, seed: int) -> None:
    """And what is lost by measuring is next to nothing."""
    control = DraftControl()
    lost: dict[str, Any] = {"cycle_s": lambda _: 0.18, "acceptance": lambda _: acceptance}
    simulate(control, n_tokens, seed=seed, **lost)
    assert not control.verdict.drafting
    control = DraftControl()
    seconds, share = simulate(control, n_tokens, seed=seed, page_faults=0, **lost)
    assert not control.verdict.drafting and share < 0.06
    assert seconds < 0.1 * n_tokens * most


def test_a_trial_ends_when_it_cannot_pay_any_more() -> None:
    """Three wrong drafts are enough where two tokens cost 1.8 times one; where they cost 1.1, hope lasts longer."""
    n_drafted = []
    for cycle_s in (0.18, 0.11):
        control = DraftControl()
        decisions = []
        for _ in range(30):
            decisions.append(control.wants_draft())
            control.record(drafted=decisions[-1], seconds=cycle_s if decisions[-1] else 0.1, n_tokens=1)
        assert decisions[:5] == [False] * 4 + [True]  # plain first: nothing can be lost by that
        n_drafted.append(sum(decisions))
        assert not control.verdict.drafting and control.verdict.n_switches == 1
    assert n_drafted == [3, 8]


def test_the_mtp_blocks_see_the_text_again_before_a_trial() -> None:
    """Not while drafting is off, but for the last cycles before it is tried: see WARM_UP."""
    control = DraftControl()
    seen = []
    for _ in range(400):
        draft = control.wants_draft()
        seen.append((draft, control.wants_rows))
        control.record(drafted=draft, seconds=0.18 if draft else 0.1, n_tokens=1)
    trials = [i for i in range(1, 400) if seen[i][0] and not seen[i - 1][0]]
    assert len(trials) >= 2
    for trial in trials[1:]:
        assert all(rows for _, rows in seen[trial - WARM_UP : trial + 1])
        assert not any(rows for _, rows in seen[trial - WARM_UP - 20 : trial - WARM_UP])
    assert sum(rows for _, rows in seen) < 400 * 0.35
    assert all(rows for _, rows in seen[:7]) and DraftControl(adaptive=False).wants_rows


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


@pytest.mark.parametrize("seed", range(5))
def test_at_break_even_nothing_is_lost(seed: int) -> None:
    control = DraftControl()
    seconds, _ = simulate(control, 5000, cycle_s=lambda _: 0.18, acceptance=lambda _: 0.8, seed=seed)
    plain_only, _ = simulate(DraftControl(), 5000, cycle_s=lambda _: 0.1, acceptance=lambda _: 0.0, seed=seed)
    assert control.verdict.n_switches <= 20
    assert seconds < plain_only * 1.04


def test_hope_counts_every_conversation() -> None:
    """Four at a time with two drafts each: a cycle gives 4 tokens when all are wrong, 12 when all are right."""
    for n_right, n_drafted in ((0, 3), (8, 8)):
        control = DraftControl(n_drawing=4, n_draft=2)
        wanted = []
        for _ in range(12):
            wanted.append(control.wants_draft())
            control.record(drafted=wanted[-1], seconds=0.2 if wanted[-1] else 0.1, n_tokens=4 + n_right * wanted[-1])
        assert sum(wanted) == n_drafted


def test_forced_drafting_always_drafts() -> None:
    control = DraftControl(adaptive=False)
    _, share = simulate(control, 300, cycle_s=lambda _: 9.0)
    assert share == 1.0 and control.verdict.drafting


def test_nothing_measured_nothing_claimed() -> None:
    verdict = DraftControl().verdict
    assert verdict.drafting and verdict.speed_up is None and verdict.plain_tokens_per_s is None


def test_no_speed_is_told_that_few_tokens_gave() -> None:
    """A trial of three cycles, all slow because the machine is busy, ends drafting; it is no figure to show."""
    control = DraftControl()
    told = []
    for _ in range(400):
        draft = control.wants_draft()
        control.record(drafted=draft, seconds=0.2 if draft else 0.0004, n_tokens=1)
        told.append(control.verdict)
    assert not control.verdict.drafting and control.verdict.n_switches == 1
    assert told[6].plain_tokens_per_s is None and told[20].plain_tokens_per_s == pytest.approx(2500)
    assert [verdict.speed_up for verdict in told[:150]] == [None] * 150
    control = DraftControl(adaptive=False)
    for _ in range(7):
        control.record(drafted=True, seconds=0.1, n_tokens=2)
    assert control.verdict.drafted_tokens_per_s is None
    control.record(drafted=True, seconds=0.1, n_tokens=2)
    assert control.verdict.drafted_tokens_per_s == pytest.approx(20)
