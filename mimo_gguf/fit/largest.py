"""Finding the largest number (of layers, of context steps) that fits, in three or four tries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, TypeVar

Plan = TypeVar("Plan")


def largest_with_room(
    plan_of: Callable[[int], Plan], spare: Callable[[Plan], int], low: int, high: int, guess: int
) -> Plan | None:
    """The plan of the largest number in [low, high) with room to spare; None if there is none.

    The need grows with the number, and nearly in proportion: what a plan has to spare (below zero: lacks), counted in
    such steps, tells where to look next, and three or four plans are enough. If that goes wrong, bisection ends it.
    """
    best = None
    for attempt in itertools.count():
        if low >= high:
            return best
        number = min(max(guess, low), high - 1) if attempt < _GUESSES else (low + high) // 2
        plan = plan_of(number)
        guess = number + spare(plan)
        if guess >= number:
            best, low = plan, number + 1
        else:
            high = number
    raise AssertionError  # the loop has no other end


_GUESSES: Final = 5
