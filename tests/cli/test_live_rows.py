"""Rows that are drawn anew, in a terminal that is made narrower and wider meanwhile."""

from __future__ import annotations

import io
import re

from rich.console import Console
from rich.segment import Segment

from mimo_gguf.cli.live_rows import LiveRows, Row


class Terminal(io.StringIO):
    """What a terminal shows that breaks rows anew when its width changes, as most do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.rows = [""]
        self.goes_on = [False]  # whether the row was too long and goes on in the next
        self.at = self.column = 0

    def write(self, text: str) -> int:
        for control, up, erased, char in re.findall(r"([\r\n])|\x1b\[(\d+)A|\x1b\[(2K)|(.)", text):
            if control == "\n" or (char and self.column == self.width):
                self._next_row(wrapped=not control)
            if control:
                self.column = 0
            elif up:
                self.at = max(self.at - int(up), 0)
            elif erased:
                self.rows[self.at], self.goes_on[self.at] = "", False
            else:
                self.rows[self.at] = self.rows[self.at][: self.column].ljust(self.column) + char
                self.column += 1
        return len(text)

    def _next_row(self, *, wrapped: bool) -> None:
        self.goes_on[self.at] = wrapped
        self.at, self.column = self.at + 1, 0
        if self.at == len(self.rows):
            self.rows.append("")
            self.goes_on.append(False)

    def resize(self, width: int) -> None:
        """The cursor is where what is shown ends."""
        shown = zip(self.rows[: self.at + 1], self.goes_on, strict=False)
        text = "".join(row + "\r\n" * (not goes_on) for row, goes_on in shown)
        self.__init__(width)  # type: ignore[misc]
        self.write(text.removesuffix("\r\n"))


def rows_of(*texts: str) -> list[Row]:
    return [[Segment(text)] if text else [] for text in texts]


def console_on(terminal: Terminal, height: int = 24) -> Console:
    return Console(file=terminal, force_terminal=True, width=terminal.width, height=height, _environ={"TERM": "xterm"})


def test_the_window_is_made_narrower_and_wider() -> None:
    terminal = Terminal(40)
    console = console_on(terminal)
    live = LiveRows(console)
    console.print("above")
    live.draw(rows_of("a" * 40, "", "b" * 35, "c"))
    for width in (30, 17, 13, 39):
        terminal.resize(width)
        console.width = width
        drawn = ["x" * width, "", "y"]
        live.draw(rows_of(*drawn))
        assert [row for row in terminal.rows if row] == ["above", drawn[0], "y"]
    live.erase()
    console.print("below")
    assert [row for row in terminal.rows if row] == ["above", "below"]


def test_wide_characters_are_counted_as_wide() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=20, _environ={"TERM": "xterm"})
    live = LiveRows(console)
    live.draw(rows_of("中文" * 5))
    console.width = 5  # two of them in a row
    live.erase()
    assert out.getvalue().count("\x1b[1A") == 4


def test_only_the_end_of_much_is_drawn() -> None:
    terminal = Terminal(20)
    LiveRows(console_on(terminal, height=10)).draw(rows_of(*map(str, range(30))))
    assert terminal.rows == [str(n) for n in range(22, 30)]


def test_nothing_is_drawn_where_nothing_can_be_taken_back() -> None:
    for environment, is_terminal in (({"TERM": "dumb"}, True), ({"TERM": "xterm"}, False)):
        out = io.StringIO()
        live = LiveRows(Console(file=out, force_terminal=is_terminal, width=20, _environ=environment))
        live.draw(rows_of("text"))
        live.erase()
        assert out.getvalue() == ""
