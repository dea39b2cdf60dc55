"""What counts as a number in the arguments that people give."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Whether `value` is an int or one of numpy's; neither True nor False is, nor 2.0."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))  # the usual kind first


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number; neither NaN is, nor True or False."""
    return not isinstance(value, bool) and isinstance(value, Real) and bool(value == value)
