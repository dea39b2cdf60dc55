"""Finds places for the labels of points in a picture, so that no label covers another, a point, or the frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, hypot, pi, sin
from typing import Final

import numpy as np
from numpy.typing import NDArray

_DIRECTIONS: Final = 16
_DISTANCES: Final = (8, 14, 22, 34, 50, 70, 95, 125)  # pixels between a point and the box of its label
_LINE_PIXELS: Final = 2


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def area(self) -> float:
        """Its area in square pixels."""
        return (self.right - self.left) * (self.top - self.bottom)

    def overlap(self, other: Box) -> float:
        """The area that it has in common with another one."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)


def box_around(x: float, y: float, reach: float) -> Box:
    """The square whose edges are `reach` pixels from a point."""
    return Box(x - reach, y - reach, x + reach, y + reach)


def boxes_along(corners: Sequence[tuple[float, float]]) -> list[Box]:
    """Small squares along a line from corner to corner, so that labels avoid it, too."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        n = max(int(hypot(x1 - x0, y1 - y0) / (2 * _LINE_PIXELS)), 1)
        boxes += [box_around(x0 + (x1 - x0) * i / n, y0 + (y1 - y0) * i / n, _LINE_PIXELS) for i in range(n + 1)]
    return boxes


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    taken: Sequence[Box] = (),
) -> list[Box]:
    """Chooses a place for each label: the nearest to its point that is free, or else the one with the least overlap.

    Args:
        points: in pixels; one per label.
        sizes: width and height of each label in pixels.
        frame: labels lie inside it.
        taken: other places that no label may cover, such as marks and error bars.
    """
    occupied = _as_array([frame, *taken])
    placed: list[Box] = []
    for point, size in zip(points, sizes, strict=True):
        candidates = list(_candidates(point, size))
        shared = _overlaps(_as_array(candidates), occupied)
        hidden = candidates[0].area - shared[:, 0] + shared[:, 1:].sum(axis=1)  # outside the frame, or on another
        placed.append(candidates[int(hidden.argmin())])
        occupied = np.concatenate([occupied, _as_array(placed[-1:])])
    return placed


def _as_array(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """Boxes as rows of left, bottom, right, top."""
    return np.array([(box.left, box.bottom, box.right, box.top) for box in boxes])


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area that each box has in common with each other one, [n_boxes, n_others]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    areas: NDArray[np.float64] = np.clip(high - low, 0, None).prod(axis=2)
    return areas


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> Iterator[Box]:
    """The places around a point, the nearest ring first and in each ring the one to the right."""
    (x, y), (width, height) = point, size
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            angle = 2 * pi * step / _DIRECTIONS
            left = x + cos(angle) * (distance + width / 2) - width / 2
            bottom = y + sin(angle) * (distance + height / 2) - height / 2
            yield Box(left, bottom, left + width, bottom + height)
