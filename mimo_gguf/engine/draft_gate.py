"""Decides which of several conversations draft: one whose drafts are mostly wrong costs all the others time.

This is pure arithmetic. A cycle in which m of n conversations draft takes about a + b * m seconds. It gives n tokens
and the right drafts. Those with the highest shares of right drafts go on drafting, as many as give the most tokens per
second. The highest share counts that the last cycles allow, so that a new conversation drafts. Of one that was left out
the mean counts, as it was then. It is tried afresh now and then, ever more rarely, because its text may change.
"""

from __future__ import annotations

import collections
import itertools
import statistics
from collections.abc import Sequence
from typing import Final

from mimo_gguf.engine.stats import upper_bound

WARM_UP: Final = 32  # cycles before drafting in which the MTP blocks see the text again
FIRST_INTERVAL: Final = 48  # cycles before drafting is tried again; doubles up to the last
LAST_INTERVAL: Final = 768
HOPE_Z: Final = 1.64  # normal quantile of 95 %: how sure to be that drafting cannot pay
_WINDOW: Final = 48  # cycles of a conversation that are kept
_COSTS: Final = 24  # cycles of each number of drafting conversations that are kept
_PLAIN_COUNTS: Final = 4  # as so many cycles at most: a plain cycle also lacks the MTP blocks' own decode


class RecentDrafts:
    """What came of one conversation's last drafts, and whether it drafts now.

    Attributes:
        most: drafts at a time.
    """

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self._right: collections.deque[int] = collections.deque(maxlen=_WINDOW)
        self._interval = FIRST_INTERVAL
        self._until_tried = 0

    @property
    def drafts(self) -> bool:
        """Whether the conversation is to draft, if any does."""
        return not self._until_tried

    @property
    def wants_rows(self) -> bool:
        """Whether it drafts now, or so soon that the MTP blocks should see what is evaluated."""
        return self._until_tried <= WARM_UP

    @property
    def worth(self) -> float:
        """Right drafts of a cycle: the most that are likely, or the mean if it was left out."""
        n = len(self._right) * self.most
        if not n:
            return float(self.most)
        share = sum(self._right) / n
        return self.most * (upper_bound(share, n, HOPE_Z) if self.drafts else share)

    def record(self, n_right: int) -> None:
        """Records a cycle in which it drafted."""
        self._right.append(n_right)
        if len(self._right) == _WINDOW:
            self._interval = FIRST_INTERVAL

    def pass_by(self) -> None:
        """Records a cycle in which it had been left out."""
        self._until_tried -= 1
        if not self._until_tried:
            self._right.clear()

    def leave_out(self) -> None:
        """Stops its drafts until it is tried again."""
        self._until_tried = self._interval
        self._interval = min(self._interval * 2, LAST_INTERVAL)

    def call_back(self) -> None:
        """Lets it draft as soon as the MTP blocks have seen enough of its text."""
        self._until_tried = min(self._until_tried, WARM_UP)


class DraftGate:
    """Chooses among the conversations that draw from a pass. There is one for each number of them."""

    def __init__(self, n_drawing: int) -> None:
        self._n_drawing = n_drawing
        self._seconds: dict[int, collections.deque[float]] = {}  # by the number of conversations that drafted

    def record(self, n_drafting: int, seconds: float) -> None:
        """Records the seconds of a cycle."""
        self._seconds.setdefault(n_drafting, collections.deque(maxlen=_COSTS)).append(seconds)

    def choose(self, all_recent: Sequence[RecentDrafts]) -> bool:
        """Leaves out those that do not pay, and calls back those that would. Returns whether one was left out.

        One that is alone is not left out: whether it pays is asked of the speed itself (`DraftControl`).
        """
        if len(all_recent) == 1 and not all_recent[0].drafts:
            all_recent[0].call_back()
        if len(all_recent) < 2 or len(self._seconds) < 2:
            return False
        first_s, each_s = self._line()
        worth = sorted(((recent.worth, number) for number, recent in enumerate(all_recent)), reverse=True)
        n = _best_number(self._n_drawing, [each for each, _ in worth], first_s, each_s)
        for _, number in worth[:n]:
            if not all_recent[number].drafts:
                all_recent[number].call_back()
        out = [all_recent[number] for _, number in worth[n:] if all_recent[number].drafts]
        for recent in out:
            recent.leave_out()
        return bool(out)

    def _line(self) -> tuple[float, float]:
        """The seconds of a cycle as a line a + b * m: the least squares of the medians, by how many there are."""
        points = [
            (m, statistics.median(each), min(len(each), _COSTS if m else _PLAIN_COUNTS))
            for m, each in self._seconds.items()
        ]
        total = sum(weight for _, _, weight in points)
        mean_m = sum(m * weight for m, _, weight in points) / total
        mean_s = sum(seconds * weight for _, seconds, weight in points) / total
        spread = sum(weight * (m - mean_m) ** 2 for m, _, weight in points)
        slope = sum(weight * (m - mean_m) * (seconds - mean_s) for m, seconds, weight in points) / spread
        slope = max(slope, 0.0)
        return max(mean_s - slope * mean_m, 1e-9), slope


def _best_number(n_drawing: int, worth: Sequence[float], first_s: float, each_s: float) -> int:
    """How many should draft, at least one: those that are worth most come first."""
    speeds = [
        (n_drawing + total) / (first_s + each_s * m) for m, total in enumerate(itertools.accumulate(worth), start=1)
    ]
    return 1 + max(range(len(speeds)), key=speeds.__getitem__)
