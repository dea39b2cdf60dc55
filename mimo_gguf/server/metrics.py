"""`/metrics` in Prometheus' form: requests, tokens, drafts, the queue, and how soon the first token comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mimo_gguf.engine.stats import SessionStats
from mimo_gguf.server.engine import Engine
from mimo_gguf.server.models import Models

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
# name -> what it is now, and how it is read from a loaded model's engine
_GAUGES: Final[dict[str, tuple[str, Callable[[Engine], float]]]] = {
    "loaded": ("Whether the model is loaded", lambda engine: 1),
    "running": ("Answers that have a slot", lambda engine: engine.n_running),
    "waiting": ("Answers that wait for a slot", lambda engine: engine.n_waiting),
    "slots": ("Slots", lambda engine: engine.n_parallel),
    "parked_conversations": ("Conversations parked in the host's memory", lambda engine: len(engine.parking)),
    "parked_bytes": ("Bytes of these", lambda engine: engine.parking.n_bytes),
    "parked_bytes_most": ("Bytes that these may have", lambda engine: engine.parking.most_bytes),
    "cached_cells": ("Tokens in the KV cache, shared ones counted twice", lambda engine: engine.n_cached),
}
# name -> what it counts, and how it is read from the counts of all sessions of the model
_COUNTS: Final[dict[str, tuple[str, Callable[[SessionStats], float]]]] = {
    "prompt_tokens": ("Tokens of prompts that were evaluated", lambda stats: stats.n_prompt),
    "cached_tokens": ("Tokens of prompts that were in the KV cache already", lambda stats: stats.n_reused),
    "generated_tokens": ("Tokens that were drawn", lambda stats: stats.n_generated),
    "passes": ("Passes that evaluated a drawn token", lambda stats: stats.n_passes),
    "drafted_tokens": ("Drafts that were compared with a drawn token", lambda stats: sum(stats.n_drafted)),
    "accepted_drafts": ("Drafts that were equal to it", lambda stats: sum(stats.n_accepted)),
    "prompt_seconds": ("Seconds of reading prompts, summed over answers", lambda stats: stats.prompt_s),
    "generation_seconds": ("Seconds of generating, summed over answers", lambda stats: stats.generation_s),
}


class Metrics:
    """What one server counts.

    Attributes:
        paths: the paths that have series of their own; all others share one, so that strangers make no new series.
    """

    def __init__(self, models: Models) -> None:
        self.paths: frozenset[str] = frozenset()
        self._registry = CollectorRegistry()
        self._registry.register(_ModelCounts(models))
        self._requests = Counter(
            "mimo_gguf_requests", "Requests, by path and status", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "mimo_gguf_request_seconds", "Seconds from a request to the end of its answer", ["path"],
            registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._first = Histogram(
            "mimo_gguf_first_token_seconds", "Seconds from a call to its first token", registry=self._registry,
            buckets=_SECONDS,
        )  # fmt: skip
        models.on_first_token = self._first.observe

    def note_request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request that has ended."""
        known = path if path in self.paths else "other"
        self._requests.labels(known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)

    def text(self) -> bytes:
        """The document that Prometheus reads."""
        return generate_latest(self._registry)


class _ModelCounts(Collector):
    """Reads the counts that the engines keep anyway. Each series has its model's name."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        gauges = {
            name: GaugeMetricFamily(f"mimo_gguf_{name}", text, labels=["model"]) for name, (text, _) in _GAUGES.items()
        }
        counts = {
            name: CounterMetricFamily(f"mimo_gguf_{name}", text, labels=["model"])
            for name, (text, _) in _COUNTS.items()
        }
        for served in self._models.all:
            label, engine = [served.names[0]], served.engine
            for name, (_, look) in _GAUGES.items():
                gauges[name].add_metric(label, 0 if engine is None else look(engine))
            stats = served.stats
            for name, (_, read) in _COUNTS.items():
                counts[name].add_metric(label, 0 if stats is None else read(stats))
        yield from gauges.values()
        yield from counts.values()
