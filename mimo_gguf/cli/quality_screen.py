"""Shows how far a measurement is: one line on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from mimo_gguf.cli import ui
from mimo_gguf.cli.live_rows import LiveRows, dimmed
from mimo_gguf.core.units import format_clock

_LINE_EVERY_S: Final = 5.0
_DRAW_EVERY_S: Final = 0.2


class QualityScreen:
    """Shows what is being read, at which speed, and the time left."""

    def __init__(self, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet
        self._clock = clock
        self._live = LiveRows(ui.err)
        self._what = ""
        self._started_s = 0.0
        self._before = 0  # tokens that an earlier run had read
        self._shown_s = 0.0

    def update(self, what: str, done: int, total: int, unit: str = "tokens") -> None:
        """Receives the tokens, or other units, done and to do of a base or a file."""
        now = self._clock()
        if what != self._what:
            self._what, self._started_s, self._before = what, now, done
        elif now - self._shown_s < (_DRAW_EVERY_S if self._live.possible else _LINE_EVERY_S):
            return
        self._shown_s = now
        if self._quiet:
            return
        line = self.describe(done, total, now, unit)
        if self._live.possible:
            self._live.draw(dimmed(ui.harmless(line), ui.err))
        else:
            ui.print_note(line)

    def describe(self, done: int, total: int, now: float, unit: str = "tokens") -> str:
        """The line: `Q4_K_M.gguf: 4096 of 16384 tokens, 83 tok/s, 2:28 left`."""
        line = f"{self._what}: {done} of {total} {unit}"
        seconds = now - self._started_s
        if done > self._before and seconds > 0:
            speed = (done - self._before) / seconds
            pace = f"{speed:.0f} tok/s, " if unit == "tokens" else ""
            line += f", {pace}{format_clock((total - done) / speed)} left"
        return line

    def erase(self) -> None:
        """Erases the line."""
        self._live.erase()


@contextlib.contextmanager
def showing(*, quiet: bool) -> Iterator[QualityScreen]:
    """Opens the display; after Ctrl-C it says that the same command goes on."""
    screen = QualityScreen(quiet=quiet)
    try:
        yield screen
    except KeyboardInterrupt:
        screen.erase()
        ui.print_note("stopped; the same command goes on from here")
        raise
    finally:
        screen.erase()
