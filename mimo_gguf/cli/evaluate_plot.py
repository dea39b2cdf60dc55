"""Draws the picture of `mimo-gguf evaluate --plot`: for each task the score of each model, and what was published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mimo_gguf.cli.picture import check_picture, new_figure, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mimo_gguf.evaluation.summary import Summary

_EXAMPLE: Final = "--plot scores.svg"
_MARKS: Final = ("o", "s", "^", "D", "v")
_ROOM: Final = 0.6  # of a task's row, for its models


def check_plot(path: Path) -> None:
    """Refuses a picture that could not be written. Raises UsageError, or MimoGgufError without matplotlib."""
    check_picture(path, example=_EXAMPLE)


def draw(summaries: Sequence[Summary], path: Path) -> None:
    """Writes the picture as PNG or SVG, by the name's ending.

    Raises:
        UsageError, MimoGgufError: as `check_plot`.
        OutputError: the file cannot be written.
    """
    check_plot(path)
    save_picture(compose(summaries), path)


def compose(summaries: Sequence[Summary]) -> Figure:
    """The picture: a row for each task, a point with its error for each model, a line for what was published."""
    figure = new_figure()
    axes = figure.add_subplot()
    titles = list(dict.fromkeys(result.title for summary in summaries for result in summary.tasks.values()))
    for number, summary in enumerate(summaries):
        found = [each for each in summary.tasks.values() if each.score.score is not None]
        shift = _ROOM * ((number + 0.5) / len(summaries) - 0.5)
        axes.errorbar(
            [100 * (each.score.score or 0) for each in found], [titles.index(each.title) + shift for each in found],
            xerr=[100 * (each.score.error or 0) for each in found], fmt=_MARKS[number % len(_MARKS)],
            color=f"C{number}", markersize=5, capsize=3, label=summary.model,
        )  # fmt: skip
    published = {
        (each.title, each.published)
        for summary in summaries
        for each in summary.tasks.values()
        if each.published is not None
    }
    for number, (title, value) in enumerate(sorted(published)):
        at = titles.index(title)
        label = "published" if number == 0 else ""
        axes.vlines(value, at - _ROOM / 2, at + _ROOM / 2, color="0.5", linestyles="dashed", label=label)
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set(xlabel="score in percent, with its standard error")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="best")
    return figure
