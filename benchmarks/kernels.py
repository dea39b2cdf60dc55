"""Compares the block quantizers on one core with libggml's ggml_quantize_chunk, in the same run.

    python -m benchmarks.kernels [--source bf16] [--types q4_k q6_k] [--importance] [--seconds 1.0]

Both start from the same rows in the source type, so that widening to f32 counts for both. The two run in turn, and the
fastest run of each counts: on a shared machine it is the least disturbed one. The outputs are compared. The last line
on stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType, parse_ggml_type, row_bytes
from mimo_gguf.quantization.kernels import first_nonfinite, kernel_for
from mimo_gguf.quantization.kernels.libggml import load_libggml
from mimo_gguf.quantization.kernels.probe import stored_as

N_COLUMNS = 4096
N_ROWS = 256  # 2 MiB of bf16: about what one chunk of the writer holds
DEFAULT_TYPES = ("q4_k", "q5_k", "q6_k", "q8_0", "f16", "f32")


@dataclass(frozen=True, slots=True)
class Speed:
    """The million weights per second (`_mws`) of one type, ours and libggml's."""

    ggml_type: str
    kernel: str
    note: str
    ours_mws: float
    libggml_mws: float
    ratio: float
    identical: bool


def best_times(turns: list[Callable[[], None]], seconds: float) -> list[float]:
    """Measures the shortest time of each callable; they run in turn for `seconds` in all."""
    best = [float("inf")] * len(turns)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i, turn in enumerate(turns):
            start = time.perf_counter()
            turn()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def measure(
    ggml_type: GgmlType,
    source_type: GgmlType,
    rows: NDArray[Any],
    importance: NDArray[np.float32] | None,
    seconds: float,
) -> Speed:
    kernel = kernel_for(ggml_type, source_type, importance is not None)
    library = load_libggml()
    ours = np.zeros((len(rows), row_bytes(ggml_type, N_COLUMNS)), np.uint8)
    theirs = np.zeros_like(ours)
    few = slice(0, len(rows) // 8)  # libggml is slow enough to be measured on an eighth
    turns = [
        lambda: kernel(rows, ours, importance),
        lambda: library.quantize(rows[few], source_type, ggml_type, theirs[few], importance),
    ]
    ours_s, theirs_s = best_times(turns, seconds)
    ours_mws = rows.size / ours_s / 1e6
    libggml_mws = rows[few].size / theirs_s / 1e6
    return Speed(
        ggml_type=ggml_type.name,
        kernel=kernel.name,
        note=kernel.note,
        ours_mws=round(ours_mws, 1),
        libggml_mws=round(libggml_mws, 1),
        ratio=round(ours_mws / libggml_mws, 2),
        identical=bool(np.array_equal(ours[few], theirs[few])),
    )


def scan_speed_gb_s(source_type: GgmlType, rows: NDArray[Any], seconds: float) -> float:
    (best_s,) = best_times([lambda: assert_finite(rows, source_type)], seconds)
    return round(rows.nbytes / best_s / 1e9, 2)


def assert_finite(rows: NDArray[Any], source_type: GgmlType) -> None:
    if first_nonfinite(rows, source_type) is not None:
        raise AssertionError("the benchmark's own weights are finite")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="bf16", help="source type: bf16, f16 or f32")
    parser.add_argument("--types", nargs="+", default=DEFAULT_TYPES, help="types to write")
    parser.add_argument("--importance", action="store_true", help="with an importance row")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each type")
    arguments = parser.parse_args()
    source_type = parse_ggml_type(arguments.source)
    normal = np.random.default_rng(0).standard_normal((N_ROWS, N_COLUMNS), np.float32) * np.float32(0.02)
    rows = stored_as(normal, source_type)
    importance = np.random.default_rng(1).random(N_COLUMNS, np.float32) ** 4 if arguments.importance else None

    weighing = ", with an importance row" if arguments.importance else ""
    print(f"from {source_type.name}{weighing}, one core, million weights per second")
    print(f"{'type':>6} {'ours':>8} {'libggml':>8} {'ratio':>6}  same bytes  kernel")
    speeds = []
    for ggml_type in map(parse_ggml_type, arguments.types):
        speed = measure(ggml_type, source_type, rows, importance, arguments.seconds)
        speeds.append(speed)
        print(
            f"{speed.ggml_type:>6} {speed.ours_mws:8.1f} {speed.libggml_mws:8.1f} {speed.ratio:5.1f}x"
            f"  {'yes' if speed.identical else 'NO':<10}  {speed.kernel} ({speed.note})"
        )
    scan = scan_speed_gb_s(source_type, rows, min(1.0, arguments.seconds))
    print(f"search for Inf and NaN: {scan:.1f} GB/s")
    print(
        json.dumps(
            {
                "benchmark": "kernels",
                "machine": platform.machine(),
                "libggml": load_libggml().version,
                "source": source_type.name,
                "importance": arguments.importance,
                "n_weights": rows.size,
                "speeds": [asdict(speed) for speed in speeds],
                "nonfinite_scan_gb_s": scan,
            }
        )
    )


if __name__ == "__main__":
    main()
