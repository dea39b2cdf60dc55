"""Rows at the end of a terminal's output that are drawn anew as often as they change."""

from __future__ import annotations

import threading
import time
from typing import Final

from rich.cells import chop_cells
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

Row = list[Segment]

_ERASE: Final = (ControlType.ERASE_IN_LINE, 2)


def dimmed(text: str, console: Console) -> list[Row]:
    """The rows of `text`, broken between words."""
    style = console.get_style("note")
    return [[Segment(line.plain, style)] for line in Text(text).wrap(console, console.width)]


class LiveRows:
    """The rows drawn last; what is drawn next replaces them.

    Unlike rich's `Live` it counts what the rows take now: a terminal that has been made narrower has broken them into
    more. And it hides no cursor, so that it may be left at any moment.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._drawn: list[str] = []

    @property
    def possible(self) -> bool:
        """Whether this is a terminal, and one whose rows can be taken back."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def draw(self, rows: list[Row]) -> None:
        """Replaces what is drawn, if that is `possible`. Of more rows than the window has, the last are shown."""
        if not self.possible:
            return
        rows = rows[2 - max(self.console.height, 5) :]
        with self.console:  # one write
            self.erase()
            for i, row in enumerate(rows):
                self.console.print(Segments([Segment.line(), *row] if i else row), end="")
        self._drawn = ["".join(segment.text for segment in row) for row in rows]

    def erase(self) -> None:
        """Takes back what is drawn: the next output begins where it began."""
        if self._drawn:
            width = max(self.console.width, 1)
            n_rows = sum(max(len(chop_cells(text, width)), 1) for text in self._drawn)
            up = ((ControlType.CURSOR_UP, 1), _ERASE) * (n_rows - 1)
            self.console.control(Control(ControlType.CARRIAGE_RETURN, _ERASE, *up))
            self._drawn = []


class Clock:
    """`loading, 3 s`: a sign of life while the program waits for something that takes long."""

    def __init__(self, live: LiveRows, tick_s: float = 1.0) -> None:
        self._live = live
        self._tick_s = tick_s
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self.text = ""

    def start(self, text: str) -> None:
        """Draws `text`, which may be changed, and the seconds gone, at every tick until `stop`; nobody else may."""
        self.stop()
        self.text = text
        if self._live.possible:
            self._stopped.clear()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Takes the line back."""
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            self._thread = None
            self._live.erase()

    def _run(self) -> None:
        started_s, gone_s = time.monotonic(), self._tick_s
        while not self._stopped.wait(started_s + gone_s - time.monotonic()):
            self._live.draw(dimmed(f"{self.text}, {gone_s:.0f} s", self._live.console))
            gone_s += self._tick_s
