"""Decides whether to draft: MTP must never make generation slower than it is without.

This is pure arithmetic on timings that the session measures. It compares two ways of generating: plain (one token per
pass) and drafted (a draft, and one pass over token and draft). The last cycles of each way are kept. A way's speed is
its mean tokens per cycle over its median seconds per cycle, so that one slow cycle (a page fault) decides nothing.

Measuring must cost almost nothing. Plain speed is measured first. A trial of drafting ends as soon as even the highest
acceptance that its cycles allow would not pay. If all drafts are wrong and two tokens cost nearly twice as much as one,
that is after three cycles.

Of several conversations those whose drafts do not pay are left out (`draft_gate`): a cycle counts as drafted if any of
them drafts. When one is left out, what was measured with its drafts is forgotten.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mimo_gguf.engine.draft_gate import FIRST_INTERVAL, HOPE_Z, LAST_INTERVAL, WARM_UP, DraftGate, RecentDrafts
from mimo_gguf.engine.stats import upper_bound

WINDOW: Final = 48  # cycles of each way that are kept
ENOUGH_PLAIN: Final = 4  # cycles before a speed counts
ENOUGH_DRAFTED: Final = 8
AFTER_NO_HOPE: Final = 144  # the first such interval if a trial showed at once that drafting cannot pay
SOON: Final = 16  # the same if drafting has become slower than plain was
PROBE_PLAIN: Final = 3  # cycles of one such measurement
PROBE_DRAFTED: Final = 6
FEWEST_DRAFTED: Final = 3  # cycles of a trial before it may be given up
OFF_BELOW: Final = 0.98  # of plain speed: below it drafting is switched off
ON_ABOVE: Final = 1.03  # of plain speed: above it drafting is switched on again; the gap prevents flickering
SHOWN: Final = 24  # cycles of each way from which the speed shown to people is computed
ENOUGH_SHOWN: Final = 8  # with fewer, which may all have been slow on a busy machine, no speed is shown


class _Window:
    """The last cycles of one way: (seconds, tokens) each."""

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
        """The highest speed that these cycles allow, with `n_draft` drafts for each of `n_drawing` conversations."""
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
        """Forgets the older half, so that a new measurement counts."""
        for _ in range(len(self._cycles) // 2):
            self._cycles.popleft()


@dataclass(frozen=True, slots=True)
class DraftVerdict:
    """Whether drafting is on, and the measured speeds in tokens per second; None if too few cycles were measured.

    Decisions need fewer cycles than shown speeds: a wrong decision is corrected later, a shown speed is not.
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
    """The cycles of one way that must be made before the next decision, and those made already."""

    drafted: bool
    n_left: int
    trial: _Window = field(default_factory=_Window)


class DraftControl:
    """Decides before each cycle whether to draft, from the cycles recorded so far.

    The first few cycles are plain, the next ones drafted. The way that is not in use is measured now and then, and more
    rarely each time the decision stays the same. With `adaptive=False` every cycle drafts (bench, tests).
    """

    def __init__(self, *, adaptive: bool = True, n_drawing: int = 1, n_draft: int = 1) -> None:
        """Makes a control for cycles from which `n_drawing` conversations draw: a plain one gives that many tokens."""
        self._adaptive = adaptive
        self._n_drawing, self._n_draft = n_drawing, n_draft
        self._gate = DraftGate(n_drawing)
        self._plain, self._drafted = _Window(), _Window()
        self._shown = {drafted: _Window(SHOWN) for drafted in (False, True)}
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
        """Whether drafts are made now, or so soon that the MTP blocks should see what is evaluated."""
        return not self._adaptive or self._drafting or bool(self._measuring) or self._until_measured <= WARM_UP

    def record(self, *, drafted: int, seconds: float, n_tokens: int, all_recent: Sequence[RecentDrafts] = ()) -> None:
        """Records one finished cycle.

        Args:
            drafted: the number of conversations that drafted.
            seconds: how long it lasted.
            n_tokens: the tokens that it gave.
            all_recent: the recent drafts of each conversation that may draft; those that do not pay are left out.
        """
        (self._drafted if drafted else self._plain).add(seconds, n_tokens)
        self._shown[bool(drafted)].add(seconds, n_tokens)
        if not self._adaptive:
            return
        self._gate.record(drafted, seconds)
        if (drafted or len(all_recent) == 1) and self._gate.choose(all_recent):
            self._begin_anew()
        elif self._measuring and bool(drafted) == self._measuring[0].drafted:
            self._measure(self._measuring[0], seconds, n_tokens)
        elif not self._measuring and bool(drafted) == self._drafting:
            self._until_measured -= 1
            if self._drafting and self._speed_up < OFF_BELOW:
                self._until_measured = min(self._until_measured, SOON)  # acceptance fell, or the machine changed
            if self._until_measured <= 0:
                self._measure_other_way()

    def _begin_anew(self) -> None:
        """Forgets what was measured with the drafts of a conversation that was left out."""
        self._drafted = _Window()
        if self._measuring and self._measuring[0].drafted:
            self._measuring[0] = _Measurement(True, ENOUGH_DRAFTED)

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
        """The present decision and the measured speeds."""
        drafting = self._drafting or not self._adaptive
        plain, drafted = (
            window.tokens_per_s if len(window) >= ENOUGH_SHOWN else None for window in self._shown.values()
        )
        return DraftVerdict(drafting, plain, drafted, self._n_switches)

    @property
    def _speed_up(self) -> float:
        """The drafted speed over the plain speed, as decisions use it; 1 until both are measured."""
        plain, drafted = self._plain.tokens_per_s, self._drafted.tokens_per_s
        return drafted / plain if plain and drafted else 1.0
