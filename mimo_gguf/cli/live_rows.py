"""Rows at the end of a terminal's output that are drawn anew as often as they change."""

from __future__ import annotations

from typing import Final

from rich.cells import chop_cells
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType, Segment, Segments

Row = list[Segment]

_ERASE: Final = (ControlType.ERASE_IN_LINE, 2)


class LiveRows:
    """The rows drawn last; what is drawn next replaces them.

    Unlike rich's `Live` it counts what the rows take now: a terminal that has been made narrower has broken them into
    more. And it hides no cursor, so that it may be left at any moment.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: list[str] = []

    def draw(self, rows: list[Row]) -> None:
        """Replaces what is drawn; of more rows than the window has, the last are shown. On a dumb terminal nothing."""
        if self._console.is_dumb_terminal or not self._console.is_terminal:
            return
        rows = rows[2 - max(self._console.height, 5) :]
        with self._console:  # one write
            self.erase()
            for i, row in enumerate(rows):
                self._console.print(Segments([Segment.line(), *row] if i else row), end="")
        self._drawn = ["".join(segment.text for segment in row) for row in rows]

    def erase(self) -> None:
        """Takes back what is drawn: the next output begins where it began."""
        if self._drawn:
            width = max(self._console.width, 1)
            n_rows = sum(max(len(chop_cells(text, width)), 1) for text in self._drawn)
            up = ((ControlType.CURSOR_UP, 1), _ERASE) * (n_rows - 1)
            self._console.control(Control(ControlType.CARRIAGE_RETURN, _ERASE, *up))
            self._drawn = []
