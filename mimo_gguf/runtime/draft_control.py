"""Whether to draft at all: MTP must never make generation slower than it is without.

Pure arithmetic on timings somebody else measures. Two ways of making tokens are compared: plain (one token per pass)
and drafted (a draft, one pass over draft and token, and what was accepted). Each keeps a window of its last cycles; its
speed is mean tokens per cycle over median seconds per cycle, so that one slow cycle (a page fault, a busy machine)
decides nothing.
"""

from __future__ import annotations

import collections
import statistics
from dataclasses import dataclass
from typing import Final

WINDOW: Final = 48  # cycles remembered of each way
ENOUGH_PLAIN: Final = 4  # cycles before a speed is believed
ENOUGH_DRAFTED: Final = 8
FIRST_INTERVAL: Final = 48  # cycles of the chosen way before the other is measured again; doubles up to the last
LAST_INTERVAL: Final = 768
SOON: Final = 16  # the same when drafting has become slower than plain was
PROBE_PLAIN: Final = 3  # cycles of one such measurement
PROBE_DRAFTED: Final = 6
OFF_BELOW: Final = 0.98  # of plain speed: drafting goes off
ON_ABOVE: Final = 1.03  # and on again; the gap keeps it from flickering


class _Window:
    """The last cycles of one way."""

    def __init__(self) -> None:
        self._cycles: collections.deque[tuple[float, int]] = collections.deque(maxlen=WINDOW)

    def add(self, seconds: float, n_tokens: int) -> None:
        self._cycles.append((seconds, n_tokens))

    def __len__(self) -> int:
        return len(self._cycles)

    @property
    def tokens_per_s(self) -> float | None:
        if not self._cycles:
            return None
        seconds = statistics.median(seconds for seconds, _ in self._cycles)
        return sum(n for _, n in self._cycles) / len(self._cycles) / max(seconds, 1e-9)

    def halve(self) -> None:
        """Forgets the older half, before a fresh measurement is to count."""
        for _ in range(len(self._cycles) // 2):
            self._cycles.popleft()


@dataclass(frozen=True, slots=True)
class DraftVerdict:
    """What the control measured: speeds in tokens per second (None: not yet), and whether drafting is on."""

    drafting: bool
    plain_tokens_per_s: float | None
    drafted_tokens_per_s: float | None
    n_switches: int

    @property
    def speed_up(self) -> float | None:
        if not self.plain_tokens_per_s or not self.drafted_tokens_per_s:
            return None
        return self.drafted_tokens_per_s / self.plain_tokens_per_s


class DraftControl:
    """Decides before each cycle whether to draft, from the cycles recorded so far.

    Drafting starts on. While one way is in use the other is probed now and then, ever more rarely while the verdict
    stands, so that measuring costs less than a percent or two. `adaptive=False` always drafts (bench, tests).
    """

    def __init__(self, *, adaptive: bool = True) -> None:
        self._adaptive = adaptive
        self._plain, self._drafted = _Window(), _Window()
        self._drafting = True
        self._interval = FIRST_INTERVAL
        self._until_probe = ENOUGH_DRAFTED
        self._probing = 0
        self._n_switches = 0

    def wants_draft(self) -> bool:
        """Whether the next cycle should draft."""
        return not self._adaptive or self._drafting != bool(self._probing)

    def record(self, *, drafted: bool, seconds: float, n_tokens: int) -> None:
        """Takes one finished cycle: how long it took and how many tokens it gave (a plain one gives 1)."""
        (self._drafted if drafted else self._plain).add(seconds, n_tokens)
        if not self._adaptive:
            return
        if self._probing:
            if drafted != self._drafting:
                self._probing -= 1
                if not self._probing:
                    self._judge()
        elif drafted == self._drafting:
            self._until_probe -= 1
            if self._drafting and (self.verdict.speed_up or 1.0) < OFF_BELOW:
                self._until_probe = min(self._until_probe, SOON)  # acceptance fell, or the machine changed
            if self._until_probe <= 0:
                self._begin_probe()

    def _begin_probe(self) -> None:
        other = self._plain if self._drafting else self._drafted
        enough = ENOUGH_PLAIN if self._drafting else ENOUGH_DRAFTED
        usual = PROBE_PLAIN if self._drafting else PROBE_DRAFTED
        self._probing = max(usual, enough - len(other))
        other.halve()

    def _judge(self) -> None:
        speed_up = self.verdict.speed_up or 1.0
        keep = speed_up >= OFF_BELOW if self._drafting else speed_up <= ON_ABOVE
        if keep:
            self._until_probe = self._interval
            self._interval = min(self._interval * 2, LAST_INTERVAL)
            return
        self._drafting = not self._drafting
        self._n_switches += 1
        self._interval = FIRST_INTERVAL
        self._until_probe = FIRST_INTERVAL

    @property
    def verdict(self) -> DraftVerdict:
        drafting = self._drafting or not self._adaptive
        return DraftVerdict(drafting, self._plain.tokens_per_s, self._drafted.tokens_per_s, self._n_switches)
