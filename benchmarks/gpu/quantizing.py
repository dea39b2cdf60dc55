"""Quantizing on this machine: GB/s with one to all cores, from a file in the page cache to a file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.record import Row


def measure_quantizing(path: Path, file_type: str = "Q4_K_M", most: int = 0) -> Iterator[Row]:
    """Quantizes a float GGUF with 1, 2, 4, ... and all cores; GB/s are of what is read.

    Args:
        most: threads at most; 0 means all cores.
    """
    cores = most or len(os.sched_getaffinity(0))
    counts = sorted({*(1 << step for step in range(cores.bit_length())), cores})
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        quantize(path, Path(folder), file_type, cores)  # kernels compile, and the file comes into the cache
        for threads in (count for count in counts if count <= cores):
            seconds = quantize(path, Path(folder), file_type, threads)
            yield {
                "type": file_type,
                "threads": threads,
                "seconds": seconds,
                "gb_per_s": path.stat().st_size / seconds / 1e9,
            }


def quantize(path: Path, folder: Path, file_type: str, n_threads: int) -> float:
    """The seconds of one run of the command."""
    command = [
        sys.executable, "-m", "mimo_gguf", "quantize", path, "-o", folder / "out.gguf", "--type", file_type,
        "--threads", str(n_threads), "--force", "--quiet",
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return time.perf_counter() - started
