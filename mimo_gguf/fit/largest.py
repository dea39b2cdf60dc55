"""The search for the largest number (of layers, of context steps) that fits, in three or four tries."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, TypeVar

Plan = TypeVar("Plan")


def largest_with_room(
    plan_of: Callable[[int], Plan], spare: Callable[[Plan], int], low: int, high: int, guess: int
) -> Plan | None:
    """The plan of the largest number in [low, high) that fits; None if there is none.

    The need grows nearly in proportion to the number. So the steps that a plan has to spare give the next guess, and
    three or four plans are enough. After five guesses it bisects.

    Args:
        spare: how many more steps fit beside a plan; below zero: how many are too many.
        guess: the number to try first.
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
