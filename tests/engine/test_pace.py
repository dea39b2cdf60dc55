"""How much of a prompt a pass reads while others draw: pure arithmetic on passes that take a + b * n seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mimo_gguf.engine.pace import SMALLEST, Pace


def paced(seconds: Callable[[int], float], n_passes: int, allowed_s: float = 0.5, n_drawing: int = 3) -> list[int]:
    """The sizes of so many passes, each recorded with its seconds."""
    pace, sizes = Pace(allowed_s), []
    for _ in range(n_passes):
        sizes.append(pace.room(n_drawing, 500))
        pace.record(sizes[-1] + n_drawing, seconds(sizes[-1] + n_drawing))
    return sizes


@pytest.mark.parametrize(
    ("a", "b", "size"),
    [
        (0.01, 0.0001, 500),  # fast: as many as there is room for
        (0.1, 0.004, 97),  # (0.5 - 0.1) / 0.004 tokens, of which 3 are drawn
        (0.3, 0.15, SMALLEST),  # even the fewest take too long
        (2.0, 0.001, SMALLEST),
    ],
)
def test_passes_come_to_last_as_long_as_allowed(a: float, b: float, size: int) -> None:
    sizes = paced(lambda n: a + b * n, 30)
    assert sizes[0] == 64, "nothing is known yet"
    assert abs(sizes[-1] - size) <= 1
    assert max(a + b * (n + 3) for n in sizes[1:]) <= max(0.5, a + b * (SMALLEST + 3)) * 1.05


def test_what_was_read_while_nobody_waited_is_known() -> None:
    pace = Pace(0.5)
    assert pace.room(0, 512) == 512
    pace.record(512, 5.12)
    assert pace.room(2, 500) == 48


def test_one_slow_pass_changes_nothing() -> None:
    pace = Pace(0.5)
    for seconds in (0.1, 0.1, 30.0):
        pace.record(200, seconds)
    assert pace.room(1, 500) == 500


def test_without_a_limit_and_after_short_passes() -> None:
    pace = Pace(0.0)
    pace.record(512, 1000.0)
    assert pace.room(3, 400) == 400
    pace = Pace(0.5)
    pace.record(SMALLEST - 1, 1000.0)
    assert pace.room(3, 400) == 64
