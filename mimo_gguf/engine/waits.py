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
        self._n_switches, self._since_s = _n_switches(), time.perf_counter()

    def record(self, n_rows: int, seconds: float, *, reads: bool) -> None:
        """Records a pass that has just ended; `reads` says that it read a prompt."""
        if self._waiting is None:
            return
        now_s, n_switches = time.perf_counter(), _n_switches()
        # Whatever else the process did since the pass before was interrupted, too: the pass has its share of it.
        share = min(seconds / max(now_s - self._since_s, 1e-9), 1.0)
        done = Pass(n_rows, seconds, share * (n_switches - self._n_switches))
        self._n_switches, self._since_s = n_switches, now_s
        slept = self.control.sleeps
        self.control.record(done, now_s, reads=reads)
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
