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


def test_it_follows_the_machine() -> None:
    n, control = simulate(lambda now: BUSY if 20 < now < 40 else IDLE, 100)
    best = (80 / 0.009 + 20 / 0.016) / 1.05
    assert not control.sleeps and n > 0.9 * best


def test_passes_that_read_are_no_measure_of_speed() -> None:
    """But they tell that the machine is busy, before the first token."""
    control = WaitControl()
    control.record(Pass(512, 1.0, 80), 1.0, reads=True)
    assert control.sleeps
    control.record(Pass(512, 9.0, 80), 10.0, reads=True)
    assert control.sleeps


def test_other_numbers_of_rows_are_not_compared() -> None:
    control = WaitControl()
    for number in range(8):
        control.record(Pass(1, 0.01, 8), number * 0.01)
    assert control.sleeps
    for number in range(8):
        control.record(Pass(2, 0.02, 8), 0.1 + number * 0.02)
    assert control.sleeps  # nothing of two rows was seen before
