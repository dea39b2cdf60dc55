"""Measures how often passes are interrupted, and lets threads sleep at their barriers while that is faster."""

from __future__ import annotations

import sys
import time
from typing import Final

from mimo_gguf.engine.wait_control import Pass, WaitControl
from mimo_gguf.llama.waiting import waiting

_LOOK_S: Final = 0.01  # between two looks at the interruptions: one costs too much for a pass of a millisecond


class Waits:
    """Records a session's passes, and switches how threads wait. Does nothing if that cannot be switched here."""

    def __init__(self) -> None:
        self.control = WaitControl()
        self._waiting = waiting()
        self._n_switches, self._since_s = _n_switches(), time.perf_counter()
        self._passes_s = 0.0  # of the passes since then
        self._is_closed = False

    def close(self) -> None:
        """Leaves it to others how threads wait. For any thread, also while one records a pass."""
        self._is_closed = True
        self._let_spin()

    def record(self, n_rows: int, seconds: float, *, reads: bool) -> None:
        """Records a pass that has just ended; `reads` says that it read a prompt."""
        if self._waiting is None:
            return
        now_s = time.perf_counter()
        self._passes_s += seconds
        n_switches = self._look(now_s) if now_s - self._since_s >= _LOOK_S else 0.0
        slept = self.control.sleeps
        self.control.record(Pass(n_rows, seconds, n_switches), now_s, reads=reads)
        if self.control.sleeps != slept:
            self._waiting.sleep(self, wanted=self.control.sleeps)
            if self._is_closed:  # meanwhile
                self._let_spin()

    def _look(self, now_s: float) -> float:
        """How often passes were interrupted since the last look.

        Whatever else the process did since then was interrupted, too: the passes have their share of it.
        """
        before, self._n_switches = self._n_switches, _n_switches()
        share = min(self._passes_s / max(now_s - self._since_s, 1e-9), 1.0)
        self._since_s, self._passes_s = now_s, 0.0
        return share * (self._n_switches - before)

    def __del__(self) -> None:
        self._let_spin()

    def _let_spin(self) -> None:
        if self._waiting is not None and self.control.sleeps:
            self._waiting.sleep(self, wanted=False)


def _n_switches() -> int:
    """The number of times that the system has interrupted a thread of this process."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
