"""What a misspelled name may have meant."""

from __future__ import annotations

import pytest

from mimo_gguf.core.near_matches import name_hint, near_matches

_TYPES = ["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [("Q4_KM", ["Q4_K_M"]), ("q4km", ["Q4_K_M"]), ("Q4-K-M", ["Q4_K_M"]), ("bf-16", ["BF16"]), ("Q6K", ["Q6_K"]),
     ("Q4K", ["Q4_K_M", "Q4_K_S"]), ("nothing like it", []), ("", [])],
)  # fmt: skip
def test_near_matches(word: str, meant: list[str]) -> None:
    assert sorted(near_matches(word, _TYPES)) == sorted(meant)


def test_the_hint() -> None:
    assert name_hint("Q4KM", _TYPES) == "did you mean Q4_K_M?"
    assert name_hint("zzz", ["show", "hide"]) == "one of: show, hide"
    assert name_hint("zzz", ["show", "hide"], "see /help") == "see /help"
    assert near_matches("x", []) == []
