"""Measures how often passes are interrupted, and lets threads sleep at their barriers while that is faster."""

from __future__ import annotations

import sys
import time

from mimo_gguf.engine.wait_control import Pass, WaitControl
from mimo_gguf.llama.waiting import waiting


class Waits:
    """Records a session's passes, and switches how threads wait. Does nothing if that cannot be switched here."""

    def __init__(self) -> None:
        self.control = WaitControl()
        self._waiting = waiting()
        self._n_switches = _n_switches()

    def record(self, n_rows: int, seconds: float, *, reads: bool) -> None:
        """Records a pass that has just ended; `reads` says that it read a prompt."""
        if self._waiting is None:
            return
        before, self._n_switches = self._n_switches, _n_switches()
        slept = self.control.sleeps
        self.control.record(Pass(n_rows, seconds, self._n_switches - before), time.perf_counter(), reads=reads)
        if self.control.sleeps != slept:
            self._waiting.sleep(self, wanted=self.control.sleeps)

    def __del__(self) -> None:
        if self._waiting is not None:
            self._waiting.sleep(self, wanted=False)


def _n_switches() -> int:
    """The number of times that the system has interrupted a thread of this process."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
