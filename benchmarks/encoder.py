"""Measures the encoder with error feedback beside llama.cpp's quantizers: microseconds for 256 weights on one core.

    python -m benchmarks.encoder --rows 512 --columns 1536

Times are CPU seconds, the best of several runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.calibration.encoder import Factors, encode_matrix, factors
from mimo_gguf.core.ggml_types import GgmlType, row_bytes
from mimo_gguf.quantization.kernels.libggml import load_libggml
from mimo_gguf.quantization.search.kinds import KINDS
from mimo_gguf.quantization.search.wide import search_matrix

_RUNS: Final = 3

Numbers = NDArray[np.float32]


def main() -> None:
    """Prints a table, and as the last line one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--columns", type=int, default=1536)
    wanted = parser.parse_args()
    weights, known = _example(wanted.rows, wanted.columns)
    figures = {ggml_type.name: _measure(weights, known, ggml_type) for ggml_type in KINDS}
    print(f"{'type':8}" + "".join(f"{name:>16}" for name in next(iter(figures.values()))))
    for name, times in figures.items():
        print(f"{name:8}" + "".join(f"{us:14.1f}us" for us in times.values()))
    print(json.dumps({"rows": wanted.rows, "columns": wanted.columns, "us_per_256_weights": figures}))


def _example(n_rows: int, n_columns: int) -> tuple[Numbers, Factors]:
    """Weights, and the factors of inputs that are correlated."""
    rng = np.random.default_rng(0)
    mixture = rng.standard_normal((n_columns // 4, n_columns))
    inputs = rng.standard_normal((2 * n_columns, len(mixture))) @ mixture / 16
    inputs += rng.standard_normal(inputs.shape)
    gram = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    return (rng.standard_normal((n_rows, n_columns)) * 0.02).astype(np.float32), factors(gram)


def _measure(weights: Numbers, known: Factors, ggml_type: GgmlType) -> dict[str, float]:
    importance = np.ascontiguousarray(known.gram.diagonal())
    out = np.empty((len(weights), row_bytes(ggml_type, weights.shape[1])), np.uint8)
    ways: dict[str, Callable[[], object]] = {
        "llama.cpp": lambda: load_libggml().quantize(weights, GgmlType.F32, ggml_type, out, importance),
        "wide search": lambda: search_matrix(weights, ggml_type, importance),
        "feedback": lambda: encode_matrix(weights, ggml_type, known, passes=0),
        "and descent": lambda: encode_matrix(weights, ggml_type, known),
    }
    return {name: round(_best_seconds(way) / weights.size * 256e6, 2) for name, way in ways.items()}


def _best_seconds(way: Callable[[], object]) -> float:
    """The fewest CPU seconds of some runs, after one that compiles."""
    way()
    seconds = []
    for _ in range(_RUNS):
        started = time.process_time()
        way()
        seconds.append(time.process_time() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
