"""The picture of size against divergence: every file has a point with its error and a label that can be read."""

from __future__ import annotations

from itertools import combinations
from math import inf
from pathlib import Path

import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mimo_gguf.cli.label_places import Box, place_labels
from mimo_gguf.cli.quality_plot import PlottedFile, compose, draw
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import MIB

NAMES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q3_K_M", "Q2_K")
FILES = [
    PlottedFile(name + tail, series, (140 - 10 * n) << 20, 0.002 * 1.7**n * factor, 0.0004)
    for n, name in enumerate(NAMES)
    for series, tail, factor in (("plain", "", 1.0), ("with imatrix", " imatrix", 0.97))
]


def test_labels_are_at_the_nearest_free_place() -> None:
    frame = Box(0, 0, 400, 300)
    points = [(200.0, 150.0)] * 5 + [(3.0, 3.0), (398.0, 299.0)]
    boxes = place_labels(points, [(60.0, 12.0)] * 7, frame, [Box(195, 145, 205, 155)])
    assert boxes[0].left > 200  # the first choice is to the right
    assert all(frame.overlap(box) == pytest.approx(box.area) for box in boxes)
    assert [pair for pair in combinations(boxes, 2) if pair[0].overlap(pair[1]) > 0] == []


def test_labels_without_any_free_place_overlap_least() -> None:
    (box,) = place_labels([(5.0, 5.0)], [(30.0, 30.0)], Box(0, 0, 10, 10))
    assert Box(0, 0, 10, 10).overlap(box) > 0


def test_no_label_covers_another_or_a_point() -> None:
    figure = compose(FILES, "title")
    (axes,) = figure.axes
    labels = [text for text in axes.texts if text.get_text()]
    assert sorted(text.get_text() for text in labels) == sorted(file.label for file in FILES)
    figure.draw_without_rendering()
    boxes = [_box(Text.get_window_extent(text)) for text in labels]  # without the line to its point
    marks = [_box_around(*axes.transData.transform((file.n_bytes / MIB, file.kl))) for file in FILES]
    frame = _box(axes.get_window_extent())
    assert [pair for pair in combinations(boxes, 2) if pair[0].overlap(pair[1]) > 1] == []
    assert [box for box in boxes for mark in marks if box.overlap(mark) > 1] == []
    assert [box for box in boxes if frame.overlap(box) < 0.99 * box.area] == []
    assert axes.get_yscale() == "log"


def _box(area: Bbox) -> Box:
    return Box(area.x0, area.y0, area.x1, area.y1)


def _box_around(x: float, y: float) -> Box:
    return Box(x - 3, y - 3, x + 3, y + 3)


def test_files_without_divergence_are_named_not_drawn(tmp_path: Path) -> None:
    same, broken = PlottedFile("F32", "plain", 1 << 30, 0.0, 0.0), PlottedFile("x", "plain", 1 << 30, inf, 0.0)
    assert draw([*FILES, same, broken], tmp_path / "q.svg", title="t") == ("F32", "x")
    text = (tmp_path / "q.svg").read_text()
    assert text.startswith("<?xml")
    assert "</svg>" in text
    draw(FILES, tmp_path / "q.png", title="t")
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["q.pdf", "no/q.png"])
def test_names_under_which_no_picture_can_be_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"picture|folder"):
        draw(FILES, tmp_path / name, title="t")
