"""When two runs have made the same text: the one meaning of it for our own ways, for peers and for benchmarks."""

from __future__ import annotations

from collections.abc import Sequence


def is_same_text(tokens: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether two greedy answers agree token for token, as far as the shorter one goes.

    They answer one prompt that was read from its beginning by both, so that drafts are all in which the ways differ.
    """
    n = min(len(tokens), len(wanted))
    return n > 0 and list(tokens[:n]) == list(wanted[:n])
