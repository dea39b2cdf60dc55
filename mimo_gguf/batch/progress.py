"""How far a batch is, as figures for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple

from mimo_gguf.batch.rows import Result

# name of a count -> where it stands in a result's body
_COUNTS: Final = {
    "n_prompt": ("usage", "prompt_tokens"),
    "n_generated": ("usage", "completion_tokens"),
    "n_drafted": ("timings", "draft_n"),
    "n_accepted": ("timings", "draft_n_accepted"),
}


class Counts(NamedTuple):
    """What the answer to one row adds to the figures: whether it is one, and its tokens. It can be pickled."""

    ok: bool
    n_prompt: int = 0
    n_generated: int = 0
    n_drafted: int = 0
    n_accepted: int = 0

    @classmethod
    def of(cls, result: Result) -> Counts:
        """The counts of a row's result."""
        return cls(result.ok, **{name: result.count(part, key) for name, (part, key) in _COUNTS.items()})


@dataclass(slots=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        n_rows: rows of the input; None if it comes from a pipe.
        n_earlier: rows that earlier runs have answered.
        n_done: rows that have their line of output, those included.
        n_failed: those among them that failed.
        n_prompt, n_generated, n_drafted, n_accepted: tokens of this run.
    """

    n_rows: int | None = None
    n_earlier: int = 0
    n_done: int = 0
    n_failed: int = 0
    n_prompt: int = 0
    n_generated: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    began: float = 0.0

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Starts the clock: from now on rows are answered."""
        self.began = self.clock()

    def add(self, counts: Counts) -> None:
        """Counts a row that was answered."""
        self.n_done += 1
        self.n_failed += not counts.ok
        self.n_prompt += counts.n_prompt
        self.n_generated += counts.n_generated
        self.n_drafted += counts.n_drafted
        self.n_accepted += counts.n_accepted

    @property
    def n_new(self) -> int:
        """The rows that this run has answered."""
        return self.n_done - self.n_earlier

    @property
    def seconds(self) -> float:
        """The time since this run began to answer."""
        return self.clock() - self.began

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second, of all rows together."""
        return self.n_generated / max(self.seconds, 1e-9)

    @property
    def acceptance(self) -> float | None:
        """The share of drafts that were right; None without drafts."""
        return self.n_accepted / self.n_drafted if self.n_drafted else None

    @property
    def left_s(self) -> float | None:
        """Seconds until the last row, if the others take as long as those of this run; None if nothing tells."""
        if self.n_rows is None or not self.n_new:
            return None
        return (self.n_rows - self.n_done) * self.seconds / self.n_new

    def as_json(self) -> dict[str, Any]:
        """The figures as a JSON document."""
        counts = {each.name: getattr(self, each.name) for each in fields(self) if each.name.startswith("n_")}
        rates = {"seconds": round(self.seconds, 3), "tokens_per_s": round(self.tokens_per_s, 2)}
        return counts | rates | {"acceptance": self.acceptance}
