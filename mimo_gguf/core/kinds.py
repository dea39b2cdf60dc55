"""What people give, checked at the door: a value of another kind is told at once, and not by an error within."""

from __future__ import annotations

from typing import Any

from mimo_gguf.core.errors import UsageError


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], hint: str, *, or_none: bool = False) -> None:
    """Raises UsageError if an argument is of another kind.

    Args:
        kinds: what it may be an instance of.
        hint: what to give.
        or_none: it may be None.
    """
    if not isinstance(value, kinds) and not (or_none and value is None):
        raise UsageError(f"{name} is {value!r:.60}", hint=hint)
