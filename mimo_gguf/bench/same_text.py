"""Decides if two runs have made the same text: one rule for our own ways, for peers and for benchmarks."""

from __future__ import annotations

from collections.abc import Sequence


def is_same_text(tokens: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether two greedy answers agree token for token, as far as the shorter one goes.

    Both read the same prompt from its beginning, so that they differ only in their drafts.
    """
    n = min(len(tokens), len(wanted))
    return n > 0 and list(tokens[:n]) == list(wanted[:n])
