"""Spinning and sleeping: nothing is tried on an idle machine, and on a busy one the faster way is found soon."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mimo_gguf.engine.wait_control import Pass, WaitControl

IDLE, BUSY = "idle", "busy"
# (seconds of a pass, involuntary switches per second) by (machine, sleeps), as with a model of 135 M parameters
MEASURED = {
    (IDLE, False): (0.009, 1.0), (IDLE, True): (0.030, 2.0), (BUSY, False): (0.5, 80.0), (BUSY, True): (0.016, 400.0),
}  # fmt: skip


def simulate(machine_at: Callable[[float], str], total_s: float, scale: float = 1.0) -> tuple[float, WaitControl]:
    """Runs a control for so long; the passes made, and the control."""
    rng, control, now, n = random.Random(0), WaitControl(), 0.0, 0
    while now < total_s:
        seconds, per_s = MEASURED[machine_at(now), control.sleeps]
        seconds *= scale * rng.uniform(0.8, 1.3)
        now += seconds
        n += 1
        control.record(Pass(1, seconds, int(per_s * seconds + rng.random())), now)
    return n, control


@pytest.mark.parametrize("scale", [0.03, 1.0, 20.0])
def test_an_idle_machine_tries_nothing(scale: float) -> None:
    n, control = simulate(lambda _: IDLE, 200 * scale, scale)
    best = 200 / (0.009 * 1.05)
    assert not control.sleeps and n > 0.98 * best


@pytest.mark.parametrize("scale", [0.03, 1.0])
def test_a_busy_machine_sleeps(scale: float) -> None:
    n, _ = simulate(lambda _: BUSY, 60, scale)
    best = 60 / (0.016 * 1.05 * scale)
    assert n > 0.9 * best


def test_a_few_long_passes_among_fast_ones_count() -> None:
    """As measured with a tiny model and three other programs: spinning is faster in most passes, and slower by far."""
    rng, control, now, n = random.Random(0), WaitControl(), 0.0, 0
    while now < 60:
        seconds = 0.0017 if control.sleeps else 0.5 if rng.random() < 0.02 else 0.001
        now += seconds
        n += 1
        control.record(Pass(1, seconds, 150 * seconds + rng.random()), now)
    assert n > 0.8 * 60 / 0.0017


def test_it_follows_the_machine() -> None:
    n, control = simulate(lambda now: BUSY if 20 < now < 40 else IDLE, 100)
    best = (80 / 0.009 + 20 / 0.016) / 1.05
    assert not control.sleeps and n > 0.8 * best


def test_passes_that_read_tell_before_the_first_token() -> None:
    """One long pass is not compared with another: what was tried goes on."""
    control = WaitControl()
    control.record(Pass(512, 1.0, 80), 1.0, reads=True)
    assert control.sleeps
    control.record(Pass(512, 9.0, 80), 10.0, reads=True)
    assert control.sleeps


def test_a_wrong_trial_of_long_passes_is_short() -> None:
    """A prompt on an idle machine that was interrupted once: sleeping costs its passes a tenth, and two are enough."""
    control, asleep = WaitControl(), 0
    for number in range(40):
        asleep += control.sleeps
        switches = 80 if number == 3 else 20
        control.record(Pass(256, 0.85 * (1.1 if control.sleeps else 1.0), switches), 0.9 * (number + 1), reads=True)
    assert 1 <= asleep <= 2 and not control.sleeps


def test_a_short_prompt_is_not_a_reason_to_sleep() -> None:
    """The first pass of new threads is interrupted on an idle machine, too."""
    control = WaitControl()
    for number in range(4):
        control.record(Pass(60, 0.03, 9), 0.03 * number, reads=True)
    assert not control.sleeps


def test_a_wrong_guess_lasts_for_one_trial() -> None:
    """A long prompt was interrupted, but the machine is idle when tokens are drawn."""
    control, now = WaitControl(), 1.0
    control.record(Pass(512, 1.0, 80), now, reads=True)
    for _ in range(20):
        seconds = MEASURED[IDLE, control.sleeps][0]
        now += seconds
        control.record(Pass(1, seconds, 0), now)
    assert not control.sleeps


def test_other_numbers_of_rows_are_not_compared() -> None:
    """Nothing of two rows was seen before, so spinning is tried with them at once, and found slower."""
    control, now, ways = WaitControl(), 0.0, []
    for number in range(40):
        n_rows = 1 if number < 8 else 2
        now += 0.01 if control.sleeps else 0.05
        control.record(Pass(n_rows, 0.01 if control.sleeps else 0.05, 8), now)
        ways.append(control.sleeps)
    assert False in ways[ways.index(True) :] and ways[-1]


def test_reading_is_judged_by_itself() -> None:
    """Sleeping is slower for tokens, and rejected for seconds; a prompt that is read meanwhile is faster with it."""
    control, now, ways = WaitControl(), 0.0, []
    while now < 12:
        seconds = 0.002 if control.sleeps else 0.001
        now += seconds
        control.record(Pass(1, seconds, 150 * seconds + 0.3), now)
    for _ in range(60):
        seconds = 0.04 if control.sleeps else 0.08
        now += seconds
        control.record(Pass(256, seconds, 150 * seconds), now, reads=True)
        ways.append(control.sleeps)
    assert sum(ways) > 45


@pytest.mark.parametrize(("n_rows", "seconds", "reads"), [(1, 0.001, False), (1, 0.013, False), (256, 0.65, True)])
def test_what_an_idle_machine_does_is_no_disturbance(n_rows: int, seconds: float, reads: bool) -> None:
    """It interrupts 25 to 45 times a second, whatever the passes last: a tiny model, one of 135 M, its prompts."""
    rng, control, now, n_asleep, n = random.Random(0), WaitControl(), 0.0, 0, 0
    while now < 60:
        now += seconds
        n += 1
        control.record(Pass(n_rows, seconds, int(rng.uniform(25, 45) * seconds + rng.random())), now, reads=reads)
        n_asleep += control.sleeps
    assert n_asleep < 0.02 * n
