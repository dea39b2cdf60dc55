"""The split of layers over several devices by what fits, for when llama.cpp's split by free memory does not.

llama.cpp divides by free memory alone, as if all layers were alike. But the output layer is as large as nearly five
blocks at Q4_K_M, and a small card also holds compute buffers. So a run that would fit may need too much of one card.

A plan has the number of layers of each device, and a run gives llama.cpp these numbers as the split. So what is planned
is loaded, even if free memory has changed a little.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def deal(layers: Sequence[Sequence[int]], rooms: Sequence[int]) -> tuple[int, ...] | None:
    """The number of layers for each device that leaves the fullest as much room as possible; None if they do not fit.

    Args:
        layers: for each device, the bytes of every layer on it; the layers keep their order.
        rooms: for each device, the bytes for layers.
    """
    least, most = 0, max(rooms, default=0) + 1  # bytes to leave free on each: the first is possible, the second is not
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
    """The largest number of last layers that can be dealt out; the arguments are those of `deal`."""

    def is_too_many(count: int) -> bool:
        return _fill([sizes[-count:] for sizes in layers], rooms, 0) is None

    return bisect.bisect_left(range(1, len(layers[0]) + 1), True, key=is_too_many)


def _fill(layers: Sequence[Sequence[int]], rooms: Sequence[int], left: int) -> tuple[int, ...] | None:
    """The layers of each device if one after the other is filled but for `left` bytes; None if some remain."""
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
