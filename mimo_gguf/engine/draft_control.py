"""Whether to draft at all: MTP must never make generation slower than it is without.

Pure arithmetic on timings somebody else measures. Two ways of making tokens are compared: plain (one token per pass)
and drafted (a draft, one pass over draft and token, and what was accepted). Each keeps a window of its last cycles; its
speed is mean tokens per cycle over median seconds per cycle, so that one slow cycle (a page fault, a busy machine)
decides nothing.

Measuring must cost next to nothing, too. Plain speed is measured first, and a trial of drafting ends as soon as not
even the largest share of right drafts that its few cycles agree with would pay: where drafts are all wrong and two
tokens cost nearly twice as much as one, after three cycles.
"""

from __future__ import annotations

import collections
import statistics
from dataclasses import dataclass, field
from typing import Final

from mimo_gguf.engine.stats import upper_bound

WINDOW: Final = 48  # cycles remembered of each way
ENOUGH_PLAIN: Final = 4  # cycles before a speed is believed
ENOUGH_DRAFTED: Final = 8
FIRST_INTERVAL: Final = 48  # cycles of the chosen way before the other is measured again; doubles up to the last
LAST_INTERVAL: Final = 768
AFTER_NO_HOPE: Final = 144  # the first such interval where a trial showed at once that drafting cannot pay
SOON: Final = 16  # the same when drafting has become slower than plain was
WARM_UP: Final = 32  # cycles before a trial of drafting from which on the MTP blocks are shown the text again
PROBE_PLAIN: Final = 3  # cycles of one such measurement
PROBE_DRAFTED: Final = 6
FEWEST_DRAFTED: Final = 3  # cycles of a trial before it may be given up
HOPE_Z: Final = 1.64  # normal quantile of 95 %: how sure to be that drafting cannot pay
OFF_BELOW: Final = 0.98  # of plain speed: drafting goes off
ON_ABOVE: Final = 1.03  # and on again; the gap keeps it from flickering
TOLD: Final = 24  # cycles of each way of which people are told the speed
ENOUGH_TOLD: Final = 8  # fewer may all have been slow on a busy machine: no figure


class _Window:
    """The last cycles of one way."""

    def __init__(self, n_cycles: int = WINDOW) -> None:
        self._cycles: collections.deque[tuple[float, int]] = collections.deque(maxlen=n_cycles)

    def add(self, seconds: float, n_tokens: int) -> None:
        self._cycles.append((seconds, n_tokens))

    def __len__(self) -> int:
        return len(self._cycles)

    @property
    def tokens_per_s(self) -> float | None:
        return self._tokens_per_cycle / self._seconds_per_cycle if self._cycles else None

    def most_tokens_per_s(self, n_drawing: int, n_draft: int) -> float:
        """The same with the largest share of right drafts, `n_draft` for each of `n_drawing`, that the cycles allow."""
        share = (self._tokens_per_cycle / n_drawing - 1) / n_draft
        most = upper_bound(share, n_drawing * len(self._cycles), HOPE_Z)
        return n_drawing * (1 + most * n_draft) / self._seconds_per_cycle

    @property
    def _tokens_per_cycle(self) -> float:
        return sum(n for _, n in self._cycles) / len(self._cycles)

    @property
    def _seconds_per_cycle(self) -> float:
        return max(statistics.median(seconds for seconds, _ in self._cycles), 1e-9)

    def halve(self) -> None:
        """Forgets the older half, before a fresh measurement is to count."""
        for _ in range(len(self._cycles) // 2):
            self._cycles.popleft()


@dataclass(frozen=True, slots=True)
class DraftVerdict:
    """Whether drafting is on, and the speeds measured, in tokens per second (None: on too few tokens to be told).

    Decisions are made on fewer: an interval later a wrong one is put right, while a figure stands on the screen.
    """

    drafting: bool
    plain_tokens_per_s: float | None
    drafted_tokens_per_s: float | None
    n_switches: int

    @property
    def speed_up(self) -> float | None:
        if not self.plain_tokens_per_s or not self.drafted_tokens_per_s:
            return None
        return self.drafted_tokens_per_s / self.plain_tokens_per_s


@dataclass(slots=True)
class _Measurement:
    """Cycles of one way that are to be made before the verdict; those of a trial of drafting are kept."""

    drafted: bool
    n_left: int
    trial: _Window = field(default_factory=_Window)


class DraftControl:
    """Decides before each cycle whether to draft, from the cycles recorded so far.

    After a few plain cycles it drafts. While one way is in use the other is measured now and then, ever more rarely
    while the verdict stands. `adaptive=False` always drafts (bench, tests).
    """

    def __init__(self, *, adaptive: bool = True, n_drawing: int = 1, n_draft: int = 1) -> None:
        """`n_drawing` conversations draw from each cycle: so many tokens give a plain one."""
        self._adaptive = adaptive
        self._n_drawing, self._n_draft = n_drawing, n_draft
        self._plain, self._drafted = _Window(), _Window()
        self._told = {drafted: _Window(TOLD) for drafted in (False, True)}
        self._drafting = True
        self._interval = FIRST_INTERVAL
        self._until_measured = 0
        self._measuring = [_Measurement(False, ENOUGH_PLAIN), _Measurement(True, ENOUGH_DRAFTED)]
        self._n_switches = 0

    def wants_draft(self) -> bool:
        """Whether the next cycle should draft."""
        return not self._adaptive or (self._measuring[0].drafted if self._measuring else self._drafting)

    @property
    def wants_rows(self) -> bool:
        """Whether drafts are made, or will be so soon that the MTP blocks should see what is evaluated."""
        return not self._adaptive or self._drafting or bool(self._measuring) or self._until_measured <= WARM_UP

    def record(self, *, drafted: bool, seconds: float, n_tokens: int) -> None:
        """Takes one finished cycle: how long it took and how many tokens it gave."""
        (self._drafted if drafted else self._plain).add(seconds, n_tokens)
        self._told[drafted].add(seconds, n_tokens)
        if not self._adaptive:
            return
        if self._measuring and drafted == self._measuring[0].drafted:
            self._measure(self._measuring[0], seconds, n_tokens)
        elif not self._measuring and drafted == self._drafting:
            self._until_measured -= 1
            if self._drafting and self._speed_up < OFF_BELOW:
                self._until_measured = min(self._until_measured, SOON)  # acceptance fell, or the machine changed
            if self._until_measured <= 0:
                self._measure_other_way()

    def _measure(self, measurement: _Measurement, seconds: float, n_tokens: int) -> None:
        measurement.n_left -= 1
        measurement.trial.add(seconds, n_tokens)
        if measurement.drafted and self._is_hopeless(measurement.trial):
            self._measuring, self._drafted = [], measurement.trial
            self._decide(drafting=False)
            self._until_measured = max(self._until_measured, AFTER_NO_HOPE)
        elif not measurement.n_left:
            del self._measuring[0]
            if not self._measuring:
                speed_up = self._speed_up
                self._decide(drafting=speed_up >= OFF_BELOW if self._drafting else speed_up > ON_ABOVE)

    def _is_hopeless(self, trial: _Window) -> bool:
        plain = self._plain.tokens_per_s
        if plain is None or len(trial) < FEWEST_DRAFTED:
            return False
        return trial.most_tokens_per_s(self._n_drawing, self._n_draft) < OFF_BELOW * plain

    def _measure_other_way(self) -> None:
        other = self._plain if self._drafting else self._drafted
        enough = ENOUGH_PLAIN if self._drafting else ENOUGH_DRAFTED
        usual = PROBE_PLAIN if self._drafting else PROBE_DRAFTED
        self._measuring = [_Measurement(not self._drafting, max(usual, enough - len(other)))]
        other.halve()

    def _decide(self, *, drafting: bool) -> None:
        if drafting == self._drafting:
            self._until_measured = self._interval
            self._interval = min(self._interval * 2, LAST_INTERVAL)
            return
        self._drafting = drafting
        self._n_switches += 1
        self._interval = self._until_measured = FIRST_INTERVAL

    @property
    def verdict(self) -> DraftVerdict:
        drafting = self._drafting or not self._adaptive
        plain, drafted = (window.tokens_per_s if len(window) >= ENOUGH_TOLD else None for window in self._told.values())
        return DraftVerdict(drafting, plain, drafted, self._n_switches)

    @property
    def _speed_up(self) -> float:
        """By the windows that decisions are made on; 1 as long as one of them is empty."""
        plain, drafted = self._plain.tokens_per_s, self._drafted.tokens_per_s
        return drafted / plain if plain and drafted else 1.0
