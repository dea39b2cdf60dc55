"""Which prompts a pass reads, and how much of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from mimo_gguf.engine.shares import plan_reading
from mimo_gguf.engine.slot import Slot


def slots_with(lengths: Sequence[int], priorities: Sequence[int] = ()) -> list[Slot]:
    """Slots that wait with prompts of these lengths."""
    slots = [Slot(cast("Any", None), number, 10**6, None, 1) for number in range(len(lengths))]
    for slot, n in zip(slots, lengths, strict=True):
        slot.prompt = [1] * n
    for slot, priority in zip(slots, priorities, strict=False):
        slot.priority = priority
    return slots


def read(slots: Sequence[Slot], room: int = 512, n_rows: int = 64) -> list[tuple[int, int, int]]:
    """The slot, its tokens and its rows of logits, for each share of the next pass, which is then made."""
    shares = plan_reading([slot for slot in slots if slot.prompt], room, n_rows)
    for share in shares:
        del share.slot.prompt[: len(share.tokens)]
    return [(share.slot.seq_id, len(share.tokens), share.n_outputs) for share in shares]


def test_the_shortest_first_and_the_last_one_in_pieces() -> None:
    slots = slots_with([500, 20, 100])
    assert read(slots) == [(1, 20, 1), (2, 100, 1), (0, 392, 0)]
    assert read(slots) == [(0, 108, 1)]


def test_priority_before_length() -> None:
    assert read(slots_with([10, 300, 400], [-1, 0, 0])) == [(1, 300, 1), (2, 212, 0)]


def test_prompts_of_one_length_in_the_order_in_which_they_came() -> None:
    slots = slots_with([10, 0, 10])
    order = [read(slots, room=10)[0][0]]
    for late in (slots[1], slots[0], slots[1]):
        late.prompt = [1] * 10
        order.append(read(slots, room=10)[0][0])
    assert order == [0, 2, 1, 0]


def test_who_was_left_out_eight_times_comes_first() -> None:
    slots = slots_with([400, 0])
    order = []
    for _ in range(11):
        slots[1].prompt = [1] * 10
        order += [slot for slot, *_ in read(slots, room=10)]
    assert order.index(0) == 8 and order.count(0) == 1


def test_rows_of_logits_are_shared_out() -> None:
    """Each slot has one; what is left goes to the first prompt that needs one for every token."""
    slots = slots_with([30, 5, 200])
    slots[0].wants_rows = slots[2].wants_rows = True
    assert read(slots, n_rows=10) == [(1, 5, 1), (0, 8, 8), (2, 1, 1)]
