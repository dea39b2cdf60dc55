"""Redraws rows at the end of a terminal's output whenever they change."""

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
    """Breaks `text` into dimmed rows, between words."""
    style = console.get_style("note")
    return [[Segment(line.plain, style)] for line in Text(text).wrap(console, console.width)]


class LiveRows:
    """Draws rows that replace those drawn before.

    Unlike rich's `Live` it counts the rows again before it erases them: a terminal that was made narrower has broken
    them into more. It does not hide the cursor, so that it may be left at any moment.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._drawn: list[str] = []

    @property
    def possible(self) -> bool:
        """Whether this is a terminal whose rows can be erased."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def draw(self, rows: list[Row]) -> None:
        """Replaces what is drawn, if that is `possible`. If the window has fewer rows, the last ones are shown."""
        if not self.possible:
            return
        rows = rows[2 - max(self.console.height, 5) :]
        with self.console:  # one write
            self.erase()
            for i, row in enumerate(rows):
                self.console.print(Segments([Segment.line(), *row] if i else row), end="")
        self._drawn = ["".join(segment.text for segment in row) for row in rows]

    def erase(self) -> None:
        """Erases what is drawn. The next output begins in the same place."""
        if self._drawn:
            width = max(self.console.width, 1)
            n_rows = sum(max(len(chop_cells(text, width)), 1) for text in self._drawn)
            up = ((ControlType.CURSOR_UP, 1), _ERASE) * (n_rows - 1)
            self.console.control(Control(ControlType.CARRIAGE_RETURN, _ERASE, *up))
            self._drawn = []


class Clock:
    """Shows that the program is alive while something takes long: `loading, 3 s`."""

    def __init__(self, live: LiveRows, tick_s: float = 1.0) -> None:
        self._live = live
        self._tick_s = tick_s
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self.text = ""

    def start(self, text: str) -> None:
        """Draws `text` and the seconds gone at every tick until `stop`. Until then nothing else may draw.

        `text` may be changed meanwhile.
        """
        self.stop()
        self.text = text
        if self._live.possible:
            self._stopped.clear()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops the clock and erases its line."""
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
