"""Layers dealt out to several devices: by free memory, as llama.cpp does, and by what fits if that is too much.

llama.cpp deals by free memory alone, as if all layers were alike. The output layer is nearly five blocks at Q4_K_M, and
a small card also holds compute buffers, so what would fit in all is too much for one card. A plan names the number of
layers of each device, and a run passes them on as the split: what is planned is what is loaded, even if free memory
has changed a little in between.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def deal(layers: Sequence[Sequence[int]], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """How many layers each device takes so that the fullest is left with as much room as possible; None: too many.

    Args:
        layers: for each device the bytes of every layer on it; the layers keep their order.
        rooms: bytes of each device for layers.
    """
    least, most = 0, max(rooms, default=0) + 1  # of room to leave on each: the first can be left, the second cannot
    best = _fill(layers, rooms, least)
    while best is not None and least < most - 1:
        middle = (least + most) // 2
        found = _fill(layers, rooms, middle)
        if found is None:
            most = middle
        else:
            best, least = found, middle
    return best


def most_layers(layers: Sequence[Sequence[int]], rooms: Sequence[int]) -> int:
    """How many of the last layers can be dealt out; arguments as `deal`."""

    def is_too_many(count: int) -> bool:
        return _fill([sizes[-count:] for sizes in layers], rooms, 0) is None

    return bisect.bisect_left(range(1, len(layers[0]) + 1), True, key=is_too_many)


def _fill(layers: Sequence[Sequence[int]], rooms: Sequence[int], left: int) -> tuple[int, ...] | None:
    """One device after the other as full as it may be with `left` bytes of its room to spare."""
    counts = []
    start = 0
    for sizes, room in zip(layers, rooms, strict=True):
        used = count = 0
        while start + count < len(sizes) and used + sizes[start + count] <= room - left:
            used += sizes[start + count]
            count += 1
        counts.append(count)
        start += count
    return tuple(counts) if start == len(layers[0]) else None
