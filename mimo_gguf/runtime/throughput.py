"""Logs throughput as vLLM does: tokens per second, running and waiting requests, and the acceptance of drafts."""

from __future__ import annotations

import time
from typing import Final

from mimo_gguf.core.log import LOGGER
from mimo_gguf.engine.session import Session
from mimo_gguf.runtime.scheduler import Scheduler

_EVERY_S: Final = 10.0


class ThroughputLog:
    """Writes lines to the log every ten seconds of work, and at its end."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._session: Session = scheduler.session
        self._since = time.perf_counter()
        self._before = self._session.stats

    def begin(self) -> None:
        """Begins to count, unless requests are running already."""
        if self._scheduler.idle:
            self._since, self._before = time.perf_counter(), self._session.stats

    def note(self) -> None:
        """Writes the figures if ten seconds have passed since they were last written."""
        if time.perf_counter() - self._since >= _EVERY_S:
            self.write()

    def write(self) -> None:
        """Writes the figures of the time since they were last written."""
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
