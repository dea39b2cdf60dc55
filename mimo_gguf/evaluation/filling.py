"""Fills the slots of a prompt. What is filled in may have braces of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SLOT: Final = re.compile(r"\{(question|context|choices|how|examples|answer)\}")


def filled(form: str, parts: Mapping[str, str]) -> str:
    """The form with its slots filled, without empty lines around it; a slot without a part stays as it is."""
    return _SLOT.sub(lambda found: parts.get(found[1], found[0]), form.strip("\n"))
