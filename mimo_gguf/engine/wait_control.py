"""Decides whether threads spin or sleep at barriers: spinning is faster on an idle machine, sleeping on a busy one.

This is pure arithmetic on what `Waits` measures. Threads spin, and nothing is tried, as long as nothing interrupts
them: on an idle machine this costs nothing. If the system interrupts them often, a few passes are made with sleeping
threads, and the faster way is kept. From then on the other way is tried now and then, ever more rarely.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final, NamedTuple

_TRIAL: Final = 8  # passes
_SUSPICIOUS_PER_S: Final = 50.0  # involuntary switches: an idle machine has up to 40, a busy one 70 to 200
_SUSPICIOUS_PER_PASS: Final = 0.2  # of short passes: an idle machine has 0.02, a busy one 0.4 and more
_LEAST_SWITCHES: Final = 5
_LEAST_S: Final = 0.25  # of passes, before their switches say anything: new threads are interrupted on any machine
_HOPELESS: Final = 3.0  # a trial that lasts so many times longer than the other way is over
_CLEARLY: Final = 0.95  # of the other way's time: only below it the way changes
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 15.0


class Pass(NamedTuple):
    """One pass: its rows, its seconds, and how often the system interrupted a thread of the process meanwhile."""

    n_rows: int
    seconds: float
    n_switches: float


class WaitControl:
    """Decides before each pass from the passes recorded so far.

    Attributes:
        sleeps: whether threads sleep in the next pass.
    """

    def __init__(self) -> None:
        self.sleeps = False
        self._recent: deque[Pass] = deque(maxlen=_TRIAL)  # passes of the way in use
        self._trial: list[Pass] | None = None  # passes of the other way, while it is tried
        self._next_s = 0.0  # time before which no trial begins
        self._pause_s = _FIRST_PAUSE_S
        self._seconds, self._n_switches, self._n_passes = (
            0.0,
            0.0,
            0,
        )  # since the last look at how often it is interrupted

    def record(self, done: Pass, now_s: float, *, reads: bool = False) -> None:
        """Records a pass. One that `reads` a prompt shows whether the machine is busy, but not how fast tokens come."""
        if self._trial is not None:
            if not reads:
                self._trial.append(done)
                if self._is_over(self._trial):
                    self._decide(self._trial, now_s)
            return
        if not reads:
            self._recent.append(done)
        disturbed = self._is_disturbed(done)
        if now_s >= self._next_s:
            self._begin_trial_if(disturbed or (self.sleeps and not reads))

    def _is_disturbed(self, done: Pass) -> bool:
        """Whether the system interrupted passes too often, looked at once they took long enough to say so."""
        self._seconds += done.seconds
        self._n_passes += 1
        self._n_switches += done.n_switches
        if self._seconds < _LEAST_S:
            return False
        limit = min(_SUSPICIOUS_PER_S * self._seconds, _SUSPICIOUS_PER_PASS * self._n_passes)
        disturbed = not self.sleeps and self._n_switches > max(limit, _LEAST_SWITCHES)
        self._seconds, self._n_switches, self._n_passes = 0.0, 0.0, 0
        return disturbed

    def _begin_trial_if(self, due: bool) -> None:
        if due:
            self.sleeps = not self.sleeps
            self._trial = []

    def _is_over(self, trial: list[Pass]) -> bool:
        usual = _median_s(self._recent, trial[-1].n_rows)
        spent = sum(each.seconds for each in trial)
        return len(trial) >= _TRIAL or (usual is not None and spent > _HOPELESS * _TRIAL * usual)

    def _decide(self, trial: list[Pass], now_s: float) -> None:
        n_rows = trial[-1].n_rows
        before, tried = _median_s(self._recent, n_rows), _median_s(trial, n_rows)
        if before is None or (tried is not None and tried < _CLEARLY * before):
            self._pause_s = _FIRST_PAUSE_S
            self._recent = deque(trial, maxlen=_TRIAL)
        else:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self.sleeps = not self.sleeps
        # If nothing was known to compare with, the other way is tried at once: a wrong guess lasts for one trial only.
        self._trial, self._next_s = None, now_s if before is None else now_s + self._pause_s


def _median_s(passes: list[Pass] | deque[Pass], n_rows: int) -> float | None:
    """The median seconds of the passes with `n_rows` rows; None if there are none."""
    seconds = [each.seconds for each in passes if each.n_rows == n_rows]
    return statistics.median(seconds) if seconds else None
