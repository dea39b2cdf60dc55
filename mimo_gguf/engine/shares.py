"""What each slot contributes to a pass, and how the prompts that are being read share the room in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mimo_gguf.engine.slot import Slot


class Share(NamedTuple):
    """What one slot contributes to a pass; the last `n_outputs` tokens want logits."""

    slot: Slot
    tokens: Sequence[int]
    n_outputs: int


def plan_reading(slots: Sequence[Slot], room: int, n_rows: int) -> list[Share]:
    """A stretch of each slot's prompt, the shortest first: its conversation waits least, the others hardly longer.

    Args:
        room: tokens that the pass can take.
        n_rows: rows of logits that it can give, at least one for each slot. What is left of them goes to prompts that
            want logits for every token.
    """
    shares = []
    spare = n_rows - len(slots)
    for slot in sorted(slots, key=lambda slot: len(slot.prompt)):
        most = min(room, 1 + spare) if slot.wants_rows else room
        if not most:
            continue
        tokens = slot.prompt[:most]
        n_outputs = len(tokens) if slot.wants_rows else int(len(tokens) == len(slot.prompt))
        shares.append(Share(slot, tokens, n_outputs))
        room -= len(tokens)
        spare -= max(n_outputs - 1, 0)
    return shares
