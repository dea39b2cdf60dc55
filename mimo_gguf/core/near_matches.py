"""The names that a misspelled one may mean, for the hints of errors about unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

_ALIKE: Final = 0.6  # SequenceMatcher's ratio from which a name is worth proposing
_AS_NEAR: Final = 0.05  # a name whose ratio is further below the best is not meant
_SHOWN: Final = 3  # proposals; more of them do not help


def near_matches(word: str, names: Iterable[str]) -> list[str]:
    """The names that are spelled most like `word`, best first, whatever their case, dashes and underscores."""
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    wanted = _plain(word)
    alike = {name: difflib.SequenceMatcher(a=wanted, b=name).ratio() for name in plain}
    best = max(alike.values(), default=0)
    near = [name for name, ratio in alike.items() if ratio >= max(_ALIKE, best - _AS_NEAR)]
    near.sort(key=lambda name: (-alike[name], abs(len(name) - len(wanted))))
    return [plain[name] for name in near[:_SHOWN]]


def name_hint(word: str, names: Iterable[str], otherwise: str = "") -> str:
    """A hint like `did you mean Q4_K_M?`; if no name is near, `otherwise`, or without that all `names`."""
    names = list(names)
    near = near_matches(word, names)
    return f"did you mean {' or '.join(near)}?" if near else otherwise or f"one of: {', '.join(names)}"


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
