"""Divides a pass among the slots: what each contributes, and how the prompts being read share the room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mimo_gguf.engine.slot import Slot

_PATIENCE: Final = 8  # passes after which a prompt that was left out comes first


class Share(NamedTuple):
    """What one slot contributes to a pass. The last `n_outputs` of its tokens give logits."""

    slot: Slot
    tokens: Sequence[int]
    n_outputs: int


def plan_reading(slots: Sequence[Slot], room: int, n_rows: int) -> list[Share]:
    """Gives room to the prompts of the highest priority, the shortest first: the others then wait hardly longer.

    A prompt that was left out too often comes first; otherwise it would wait for ever while others keep coming. Of
    prompts of one length, the one that waits longest comes first.

    Args:
        room: number of tokens that the pass still has room for.
        n_rows: number of rows of logits that it can give, at least one for each slot. The others go to prompts that
            need logits for every token.
    """
    shares = []
    spare = n_rows - len(slots)
    for slot in sorted(slots, key=_turn):
        most = min(room, 1 + spare) if slot.wants_rows else room
        if not most:
            continue
        tokens = slot.prompt[:most]
        n_outputs = len(tokens) if slot.wants_rows else int(len(tokens) == len(slot.prompt))
        shares.append(Share(slot, tokens, n_outputs))
        room -= len(tokens)
        spare -= max(n_outputs - 1, 0)
    _note_left_out(slots, shares)
    return shares


def _turn(slot: Slot) -> tuple[bool, int, int, int]:
    """What decides whose prompt is read first."""
    return slot.n_left_out < _PATIENCE, -slot.priority, len(slot.prompt), -slot.n_left_out


def _note_left_out(slots: Sequence[Slot], shares: Sequence[Share]) -> None:
    """Counts for each slot that reads a prompt the passes since it had a share."""
    for slot in slots:
        slot.n_left_out += 1
    for share in shares:
        share.slot.n_left_out = 0
