"""What vLLM writes into its log while it works: tokens per second, what runs and waits, how often drafts are right."""

from __future__ import annotations

import time
from typing import Final

from mimo_gguf.core.log import LOGGER
from mimo_gguf.engine.session import Session
from mimo_gguf.runtime.scheduler import Scheduler

_EVERY_S: Final = 10.0


class ThroughputLog:
    """Writes a line every ten seconds of work, and one at the end of it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._session: Session = scheduler.session
        self._since = time.perf_counter()
        self._before = self._session.stats

    def begin(self) -> None:
        """Counts from here on, if nothing has been under way."""
        if self._scheduler.idle:
            self._since, self._before = time.perf_counter(), self._session.stats

    def note(self) -> None:
        """Writes a line if ten seconds have passed since the last one."""
        if time.perf_counter() - self._since >= _EVERY_S:
            self.write()

    def write(self) -> None:
        """Writes a line about the time since the last one."""
        now, stats = time.perf_counter(), self._session.stats
        done, seconds = stats.since(self._before), max(now - self._since, 1e-9)
        self._since, self._before = now, stats
        drafted, accepted = sum(done.n_drafted), sum(done.n_accepted)
        n_prompt = done.n_prompt + done.n_reused
        LOGGER.info(
            "Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, Running: %d reqs, "
            "Waiting: %d reqs, KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%",
            done.n_prompt / seconds,
            done.n_generated / seconds,
            self._scheduler.n_running,
            self._scheduler.n_waiting,
            100 * sum(len(slot.tokens) for slot in self._session.slots) / self._session.target.n_cells,
            100 * done.n_reused / n_prompt if n_prompt else 0.0,
        )
        if drafted:
            LOGGER.info(
                "SpecDecoding metrics: Mean acceptance length: %.2f, Accepted: %d tokens, Drafted: %d tokens, "
                "Avg Draft acceptance rate: %.1f%%",
                1 + accepted / max(done.n_passes, 1), accepted, drafted, 100 * accepted / drafted,
            )  # fmt: skip
