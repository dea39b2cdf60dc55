"""Draws the picture of `mimo-gguf quality --plot`: size against divergence, a point with its error for each file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mimo_gguf.cli.label_places import Box, box_around, boxes_along, place_labels
from mimo_gguf.cli.picture import check_picture, new_figure, save_picture
from mimo_gguf.core.units import MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXAMPLE: Final = "--plot quality.png"
_MARKS: Final = ("o", "s", "^", "D", "v")
_POINT_PIXELS: Final = 7
_GIB_FROM: Final = 2048  # MiB


@dataclass(frozen=True, slots=True)
class PlottedFile:
    """One point of the picture.

    Attributes:
        label: the name beside the point, such as "Q4_K_M".
        series: files of one series share a colour and a mark, and stand together in the legend.
        n_bytes: size of the file.
        kl: mean KL divergence in nats.
        error: standard error of `kl`.
    """

    label: str
    series: str
    n_bytes: int
    kl: float
    error: float


def draw(files: Sequence[PlottedFile], path: Path, *, title: str) -> tuple[str, ...]:
    """Writes the picture as PNG or SVG, by the name's ending.

    Returns:
        The labels of files that have no place on a logarithmic scale, because their divergence is zero.

    Raises:
        UsageError: another ending, or no such folder.
        MimoGgufError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    check_picture(path, example=EXAMPLE)
    shown = [file for file in files if isfinite(file.kl) and file.kl > 0]
    save_picture(compose(shown, title), path)
    return tuple(file.label for file in files if file not in shown)


def compose(shown: Sequence[PlottedFile], title: str) -> Figure:
    """The picture of files whose divergence is above zero."""
    figure = new_figure()
    axes = figure.add_subplot()
    unit_bytes, unit = _unit(shown)
    series = list(dict.fromkeys(file.series for file in shown))
    for number, name in enumerate(series):
        _draw_series(axes, [file for file in shown if file.series == name], name, number, unit_bytes)
    axes.set_yscale("log")
    axes.set(xlabel=f"size of the file in {unit}", ylabel="mean KL divergence in nats (less is better)", title=title)
    axes.margins(0.1)
    axes.grid(alpha=0.3, which="both")
    if len(series) > 1:
        axes.legend(loc="upper right")  # the larger a file, the less it diverges
    figure.draw_without_rendering()  # places the axes, so that data have pixels
    figure.set_layout_engine("none")
    _label(figure, axes, shown, unit_bytes)
    return figure


def _unit(files: Sequence[PlottedFile]) -> tuple[int, str]:
    largest = max((file.n_bytes for file in files), default=0)
    return (MIB * 1024, "GiB") if largest >= _GIB_FROM * MIB else (MIB, "MiB")


def _draw_series(axes: Axes, files: Sequence[PlottedFile], name: str, number: int, unit_bytes: int) -> None:
    ordered = sorted(files, key=lambda file: file.n_bytes)
    axes.errorbar(
        [file.n_bytes / unit_bytes for file in ordered],
        [file.kl for file in ordered],
        yerr=[[_error_below(file) for file in ordered], [file.error for file in ordered]],
        fmt=f"{_MARKS[number % len(_MARKS)]}-", color=f"C{number}", markersize=5, linewidth=0.8, alpha=0.9,
        capsize=3, label=name,
    )  # fmt: skip


def _error_below(file: PlottedFile) -> float:
    """The error as far as a logarithmic scale can show it: it ends above zero."""
    return min(file.error, 0.9 * file.kl)


def _label(figure: Figure, axes: Axes, files: Sequence[PlottedFile], unit_bytes: int) -> None:
    """Writes each file's label at a free place, with a thin line to its point."""
    points = [_pixels(axes, file.n_bytes / unit_bytes, file.kl) for file in files]
    texts = [axes.text(0, 0, file.label, fontsize=8) for file in files]
    sizes = [(box.width, box.height) for box in (text.get_window_extent() for text in texts)]
    for text in texts:
        text.remove()
    bounds = axes.get_window_extent()
    legend = axes.get_legend()
    taken = [box_around(x, y, _POINT_PIXELS) for x, y in points]
    for name in dict.fromkeys(file.series for file in files):
        corners = sorted(point for file, point in zip(files, points, strict=True) if file.series == name)
        taken += boxes_along(corners)
    for file in files:
        ends = (file.kl - _error_below(file), file.kl + file.error)
        taken += boxes_along([_pixels(axes, file.n_bytes / unit_bytes, end) for end in ends])
    if legend is not None:
        area = legend.get_window_extent()
        taken.append(Box(area.x0, area.y0, area.x1, area.y1))
    frame = Box(bounds.x0, bounds.y0, bounds.x1, bounds.y1)
    to_points = 72 / figure.dpi
    for file, (x, y), box in zip(files, points, place_labels(points, sizes, frame, taken), strict=True):
        axes.annotate(
            file.label, (file.n_bytes / unit_bytes, file.kl),
            ((box.left - x) * to_points, (box.bottom - y) * to_points), textcoords="offset points", fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)
