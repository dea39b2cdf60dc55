"""Estimates how long a calibration takes on this machine: its arithmetic, at the speed of a measured sample."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mimo_gguf.calibration.encoder.encode import ROWS_AT_A_TIME, encode_matrix
from mimo_gguf.calibration.encoder.factors import factors
from mimo_gguf.calibration.plan import CalibrationPlan, encoded_types, sample_of
from mimo_gguf.core.geometry import Geometry
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.threads import blas_threads, in_threads
from mimo_gguf.core.units import format_duration

_SIDE: Final = 1024  # of the matrices that are multiplied
_SAMPLES: Final = 3
_SUPER_BLOCK: Final = 256


@dataclass(frozen=True, slots=True)
class TimeExpected:
    """The seconds of each stage: measuring costs, passing the text with its statistics, factoring, and encoding."""

    costs_s: float
    passing_s: float
    factoring_s: float
    encoding_s: float

    @property
    def total_s(self) -> float:
        """The seconds of all stages."""
        return self.costs_s + self.passing_s + self.factoring_s + self.encoding_s

    def describe(self) -> str:
        """The stages in a line, for people."""
        stages = {"costs": self.costs_s, "text": self.passing_s, "factors": self.factoring_s, "codes": self.encoding_s}
        return ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in stages.items() if seconds)

    def as_json(self) -> dict[str, Any]:
        """The estimate as a JSON document."""
        return {
            "seconds": self.total_s,
            "costs_s": self.costs_s,
            "passing_s": self.passing_s,
            "factoring_s": self.factoring_s,
            "encoding_s": self.encoding_s,
        }


def estimate_time(plan: CalibrationPlan) -> TimeExpected:
    """Estimates the time of a calibration from the speed of products and of the encoder, measured in about a second.

    An earlier run's results are not counted.
    """
    g = plan.geometry
    n_threads = plan.options.encode.threads
    single, double = _products_per_s(np.float32, n_threads), _products_per_s(np.float64, n_threads)
    per_block = _block_weights(g)
    blocks = g.n_trunk + g.n_mtp
    widths = [g.embedding_length, g.head_count * g.value_length, g.embedding_length, g.feed_forward_length]
    n_tokens = plan.text.n_tokens + plan.text.n_held_out
    sample = sample_of(plan.text).size
    solves = any(output.wanted.solved for output in plan.outputs)
    head = 2 * g.vocab_size * g.embedding_length
    squares = sum(width * width for width in widths)
    weights = sum(
        t.info.n_elements for t in plan.source.tensors if t.info.name in encoded_types(plan.outputs, plan.source)
    )
    n_types = len(plan.outputs)
    inner = sum(t.info.n_elements * t.info.n_columns for t in plan.source.tensors if len(t.info.shape) > 1)
    return TimeExpected(
        costs_s=sample * (3 * g.n_trunk * per_block + head) / single if solves else 0.0,
        passing_s=n_tokens * blocks * (per_block + squares / 2) / single,
        factoring_s=blocks * sum(width**3 for width in set(widths)) / 3 / double,
        encoding_s=n_types * (weights / _SUPER_BLOCK * _encoding_s() / n_threads + 1.5 * inner / single),
    )


def _block_weights(g: Geometry) -> int:
    attention = g.embedding_length * g.key_length * (2 * g.head_count + 2 * g.head_count_kv)
    return attention + 3 * g.embedding_length * g.feed_forward_length


def _products_per_s(kind: type[np.float32] | type[np.float64], n_threads: int) -> float:
    """Multiplications with additions per second of matrix products, one in each thread."""
    a = np.ones((_SIDE, _SIDE), kind)
    n_products = _SAMPLES * n_threads
    with blas_threads(1):
        a @ a
        started = time.perf_counter()
        in_threads(n_threads, lambda _: a @ a, range(n_products))
    return n_products * _SIDE**3 / max(time.perf_counter() - started, 1e-9)


def _encoding_s() -> float:
    """Seconds of one super-block on one core, without the products between them."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((ROWS_AT_A_TIME, _SUPER_BLOCK), np.float32)
    inputs = rng.standard_normal((2 * _SUPER_BLOCK, _SUPER_BLOCK), np.float32)
    known = factors(inputs.T @ inputs / np.float32(len(inputs)))
    encode_matrix(weights, GgmlType.Q4_K, known)
    started = time.perf_counter()
    encode_matrix(weights, GgmlType.Q4_K, known)
    return (time.perf_counter() - started) / ROWS_AT_A_TIME
