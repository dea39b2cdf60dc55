"""What a slot counts while it works: tokens, times, and how many drafts were right at which place."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

LOW_ACCEPTANCE: Final = 0.30
_SURE_Z: Final = 2.33  # normal quantile of 99 %: how sure to be that acceptance is low before saying so


@dataclass(slots=True)
class SessionStats:
    """Counts since the slot was made, or, as a difference of two, of one answer. Times in seconds.

    `n_drafted[i]` counts drafts proposed at place i after the token (0 the first), `n_accepted[i]` those drawn.
    """

    n_draft: int = 1
    n_prompt: int = 0
    n_reused: int = 0
    prompt_s: float = 0.0
    n_generated: int = 0
    generation_s: float = 0.0
    n_passes: int = 0
    n_near_ties: int = 0
    n_drafted: list[int] = field(default_factory=list)
    n_accepted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.n_drafted = self.n_drafted or [0] * self.n_draft
        self.n_accepted = self.n_accepted or [0] * self.n_draft

    def add_token(self, seconds: float) -> None:
        """Takes one token and the time it took to draw it."""
        self.n_generated += 1
        self.generation_s += seconds

    def add_pass(self, n_drafted: int, n_accepted: int, *, whole: bool) -> None:
        """Takes one pass of the target. Drafts are drawn from the first on, so two numbers say which were right.

        `whole` is false when generation stopped before the draft after the accepted ones was put to the test.
        """
        self.n_passes += 1
        for place in range(n_drafted):
            self.n_drafted[place] += place < n_accepted or (whole and place == n_accepted)
            self.n_accepted[place] += place < n_accepted

    def copy(self) -> SessionStats:
        return self.since(SessionStats(self.n_draft))

    def since(self, earlier: SessionStats) -> SessionStats:
        """What was added after `earlier` was copied."""
        return self._combined(earlier, operator.sub)

    def __add__(self, other: SessionStats) -> SessionStats:
        return self._combined(other, operator.add)

    def _combined(self, other: SessionStats, combine: Callable[[Any, Any], Any]) -> SessionStats:
        """Field by field, and place by place."""
        result = SessionStats(self.n_draft)
        for name in (entry.name for entry in fields(self) if entry.name != "n_draft"):
            mine, theirs = getattr(self, name), getattr(other, name)
            value = list(map(combine, mine, theirs)) if isinstance(mine, list) else combine(mine, theirs)
            setattr(result, name, value)
        return result

    @property
    def acceptance(self) -> float | None:
        """Share of drafts at the first place that were drawn; None when nothing was drafted."""
        return self.n_accepted[0] / self.n_drafted[0] if self.n_drafted[0] else None

    @property
    def acceptance_by_place(self) -> list[float | None]:
        """The same for each place, given that the places before it were right."""
        return [a / d if d else None for a, d in zip(self.n_accepted, self.n_drafted, strict=True)]

    @property
    def tokens_per_s(self) -> float | None:
        return self.n_generated / self.generation_s if self.generation_s > 0 else None

    @property
    def prompt_tokens_per_s(self) -> float | None:
        return self.n_prompt / self.prompt_s if self.prompt_s > 0 and self.n_prompt else None

    @property
    def warning(self) -> str | None:
        """One line when the drafts are so often wrong that something is amiss.

        Drafting that does not pay is switched off after a few tokens, so this must be said on few drafts: 13 that are
        all wrong are enough.
        """
        acceptance = self.acceptance
        if acceptance is None or upper_bound(acceptance, self.n_drafted[0], _SURE_Z) >= LOW_ACCEPTANCE:
            return None
        return (
            "fewer than 30% of the drafted tokens are right: an MTP layer of another model, one quantized too far, or "
            "text it was not made for; --no-mtp saves its memory"
        )


def total(parts: Sequence[SessionStats]) -> SessionStats:
    """The sum of at least one, as counts of its own."""
    return functools.reduce(operator.add, parts[1:], parts[0].copy())


def upper_bound(share: float, n: int, z: float) -> float:
    """The largest share of which one of `share` among `n` may be a sample (E. B. Wilson's interval for a proportion).

    Args:
        z: how sure to be, as a quantile of the normal distribution.
    """
    z2 = z**2
    spread = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (share + z2 / (2 * n) + spread) / (1 + z2 / n)
