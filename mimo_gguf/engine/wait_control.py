"""Decides whether threads spin or sleep at barriers: spinning is faster on an idle machine, sleeping on a busy one.

This is pure arithmetic on what `Waits` measures. Threads spin, and nothing is tried, as long as nothing interrupts
them: on an idle machine this costs nothing. If the system interrupts them often, a few passes are made with sleeping
threads, and the faster way is kept. From then on spinning is tried now and then, ever more rarely.

Means are compared, not medians: while other programs want the cores, most passes of spinning threads are as fast as
ever, and one in fifty lasts for half a second.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_TRIAL: Final = 8  # passes
_TRIAL_S: Final = {True: 0.1, False: 0.25}  # by whether threads sleep; spinning ones have to meet other programs
_LONG_TRIAL: Final = (2, 1.0)  # passes and seconds that are enough if passes are long, as those of prompts
_MEMORY_S: Final = 2.0  # after so many seconds of passes, what was seen before counts half
_SUSPICIOUS_PER_S: Final = 70.0  # involuntary switches: an idle machine has 25 to 50, a busy one 70 to 250
_LEAST_S: Final = 0.25  # of passes, before their switches say anything: new threads are interrupted on any machine
_HOPELESS: Final = 3.0  # a trial that lasts so many times longer than the other way is over
_BETTER: Final = {True: 0.95, False: 0.9}  # of the usual time, by whether threads sleep: only below it the way changes
_FIRST_PAUSE_S: Final = 0.5
_LEAST_PAUSE_ASLEEP_S: Final = 4.0  # before spinning is tried: a trial of it can meet a pass of half a second
_LONGEST_PAUSE_S: Final = 15.0


class Pass(NamedTuple):
    """One pass: its rows, its seconds, and how often the system interrupted a thread of the process meanwhile."""

    n_rows: int
    seconds: float
    n_switches: float


class _MeanSeconds:
    """The mean seconds of passes by their number of rows; old passes count ever less."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}  # rows -> passes, seconds
        self._seconds = 0.0
        self.n_passes = 0

    def add(self, done: Pass) -> None:
        n, seconds = self._sums.get(done.n_rows, (0.0, 0.0))
        self._sums[done.n_rows] = (n + 1, seconds + done.seconds)
        self._seconds += done.seconds
        self.n_passes += 1
        if self._seconds > _MEMORY_S:
            self._sums = {n_rows: (n / 2, seconds / 2) for n_rows, (n, seconds) in self._sums.items()}
            self._seconds /= 2

    def of(self, n_rows: int) -> float | None:
        """The mean of the passes with `n_rows` rows; None if there are none."""
        n, seconds = self._sums.get(n_rows, (0.0, 0.0))
        return seconds / n if n else None


class _Trial:
    """Passes of the other way."""

    def __init__(self, *, sleeps: bool) -> None:
        self.mean = _MeanSeconds()
        self.n_rows = 0  # of the last pass
        self._sleeps = sleeps
        self._seconds = 0.0

    def add(self, done: Pass) -> None:
        self.mean.add(done)
        self.n_rows = done.n_rows
        self._seconds += done.seconds

    def is_over(self, usual: float | None) -> bool:
        """Whether enough is known, or it is hopeless beside the `usual` seconds of a pass."""
        n = self.mean.n_passes
        if n >= _TRIAL and self._seconds >= _TRIAL_S[self._sleeps]:
            return True
        if n >= _LONG_TRIAL[0] and self._seconds >= _LONG_TRIAL[1]:
            return True
        return usual is not None and self._seconds > _HOPELESS * max(n, _TRIAL) * usual


class WaitControl:
    """Decides before each pass from the passes recorded so far.

    Attributes:
        sleeps: whether threads sleep in the next pass.
    """

    def __init__(self) -> None:
        self.sleeps = False
        self._usual = _MeanSeconds()  # of the way in use
        self._trial: _Trial | None = None  # while the other way is tried
        self._adopted_s = -_LONGEST_PAUSE_S  # when the way in use was
        self._next_s = {False: 0.0, True: 0.0}  # by whether a pass reads: time before which no trial begins
        self._pause_s = _FIRST_PAUSE_S
        self._seconds, self._n_switches = 0.0, 0.0  # since the last look at how often it is interrupted

    def record(self, done: Pass, now_s: float, *, reads: bool = False) -> None:
        """Records a pass; `reads` says that it read a prompt. Passes are compared with those of as many rows.

        What was found for passes that draw tokens does not hold off a trial with those that read, and the reverse.
        """
        if self._trial is not None:
            self._trial.add(done)
            if self._trial.is_over(self._usual.of(done.n_rows)):
                self._decide(self._trial, now_s, reads=reads)
            return
        self._usual.add(done)
        disturbed = self._is_disturbed(done)
        if now_s >= self._next_s[reads] and (disturbed or self.sleeps):
            self.sleeps = not self.sleeps
            self._trial = _Trial(sleeps=self.sleeps)

    def _is_disturbed(self, done: Pass) -> bool:
        """Whether the system interrupted passes too often, looked at once they took long enough to say so."""
        self._seconds += done.seconds
        self._n_switches += done.n_switches
        if self._seconds < _LEAST_S:
            return False
        disturbed = not self.sleeps and self._n_switches > _SUSPICIOUS_PER_S * self._seconds
        self._seconds, self._n_switches = 0.0, 0.0
        return disturbed

    def _decide(self, trial: _Trial, now_s: float, *, reads: bool) -> None:
        before, tried = self._usual.of(trial.n_rows), trial.mean.of(trial.n_rows)
        self._trial = None
        if before is None or tried is None:  # nothing to compare with: the way before is tried at once
            self._usual, self._adopted_s, self._next_s[reads] = trial.mean, now_s, now_s
        elif tried < _BETTER[self.sleeps] * before:
            self._adopt(trial.mean, now_s, reads=reads)
        else:
            self.sleeps = not self.sleeps
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._next_s[reads] = now_s + max(self._pause_s, _LEAST_PAUSE_ASLEEP_S if self.sleeps else 0)

    def _adopt(self, mean: _MeanSeconds, now_s: float, *, reads: bool) -> None:
        """Keeps the way that was tried. Spinning is left again as soon as it is interrupted; sleeping after a pause."""
        held_s = now_s - self._adopted_s
        self._pause_s = _FIRST_PAUSE_S if held_s >= _LONGEST_PAUSE_S else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._usual, self._adopted_s = mean, now_s
        self._next_s[reads] = now_s + max(self._pause_s, _LEAST_PAUSE_ASLEEP_S) if self.sleeps else now_s
