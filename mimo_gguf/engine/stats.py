"""Statistics of a slot: tokens, times, and how many drafts were accepted at which place."""

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
    """Counts since the slot was made or, as a difference of two, of one answer. Times are in seconds.

    Attributes:
        n_draft: drafts proposed at a time, at most.
        n_prompt: tokens of prompts that were evaluated, in `prompt_s`.
        n_reused: tokens of prompts that were in the KV cache already.
        n_generated: tokens drawn, in `generation_s`.
        n_passes: passes of the target that evaluated a drawn token.
        n_near_ties: tokens whose choice rounding might change (`near_ties`).
        n_drafted: for each place after the drawn token, the drafts that were compared with a drawn token.
        n_accepted: for each place, those of them that were equal.
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
        """Counts one token and the seconds that drawing it took."""
        self.n_generated += 1
        self.generation_s += seconds

    def add_pass(self, n_drafted: int, n_accepted: int, *, whole: bool) -> None:
        """Counts one pass of the target, of whose `n_drafted` drafts the first `n_accepted` were right.

        Args:
            whole: False if generation stopped before the draft after the accepted ones was compared.
        """
        self.n_passes += 1
        for place in range(n_drafted):
            self.n_drafted[place] += place < n_accepted or (whole and place == n_accepted)
            self.n_accepted[place] += place < n_accepted

    def copy(self) -> SessionStats:
        return self.since(SessionStats(self.n_draft))

    def since(self, earlier: SessionStats) -> SessionStats:
        """The counts since `earlier` was copied."""
        return self._combined(earlier, operator.sub)

    def __add__(self, other: SessionStats) -> SessionStats:
        return self._combined(other, operator.add)

    def _combined(self, other: SessionStats, combine: Callable[[Any, Any], Any]) -> SessionStats:
        """Combines two statistics field by field, lists element by element."""
        result = SessionStats(self.n_draft)
        for name in (entry.name for entry in fields(self) if entry.name != "n_draft"):
            mine, theirs = getattr(self, name), getattr(other, name)
            value = list(map(combine, mine, theirs)) if isinstance(mine, list) else combine(mine, theirs)
            setattr(result, name, value)
        return result

    @property
    def acceptance(self) -> float | None:
        """The share of accepted drafts at the first place; None if nothing was drafted."""
        return self.n_accepted[0] / self.n_drafted[0] if self.n_drafted[0] else None

    @property
    def acceptance_by_place(self) -> list[float | None]:
        """The share of accepted drafts at each place, given that those before it were right."""
        return [a / d if d else None for a, d in zip(self.n_accepted, self.n_drafted, strict=True)]

    @property
    def tokens_per_s(self) -> float | None:
        return self.n_generated / self.generation_s if self.generation_s > 0 else None

    @property
    def prompt_tokens_per_s(self) -> float | None:
        return self.n_prompt / self.prompt_s if self.prompt_s > 0 and self.n_prompt else None

    @property
    def warning(self) -> str | None:
        """One line if drafts are wrong so often that something is amiss; None otherwise.

        Drafting that does not pay is switched off after a few tokens, so few drafts must be enough for this: 13 if all
        are wrong.
        """
        acceptance = self.acceptance
        if acceptance is None or upper_bound(acceptance, self.n_drafted[0], _SURE_Z) >= LOW_ACCEPTANCE:
            return None
        return (
            "fewer than 30% of the drafted tokens are right: an MTP layer of another model, one quantized too far, or "
            "text it was not made for; --no-mtp saves its memory"
        )


def total(parts: Sequence[SessionStats]) -> SessionStats:
    """The sum of `parts`, of which there must be at least one, as a new object."""
    return functools.reduce(operator.add, parts[1:], parts[0].copy())


def upper_bound(share: float, n: int, z: float) -> float:
    """The upper bound of a proportion that was measured as `share` of `n` (Wilson's score interval, 1927).

    Args:
        z: the confidence, as a quantile of the normal distribution.
    """
    z2 = z**2
    spread = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (share + z2 / (2 * n) + spread) / (1 + z2 / n)
