"""What counts as a number where people give one."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number: an int or numpy's, but not True or False, nor 2.0."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, not NaN, nor True or False."""
    return not isinstance(value, bool) and isinstance(value, Real) and bool(value == value)
