"""Arguments checked before they are used, so that a wrong kind is one clear error."""

from __future__ import annotations

from typing import Any

from mimo_gguf.core.errors import UsageError


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], hint: str, *, or_none: bool = False) -> None:
    """Raises UsageError if the argument `name` is not an instance of `kinds`.

    Args:
        hint: what to give instead.
        or_none: whether it may be None.
    """
    if not isinstance(value, kinds) and not (or_none and value is None):
        raise UsageError(f"{name} is {value!r:.60}", hint=hint)
