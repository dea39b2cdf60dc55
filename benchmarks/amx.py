"""Measures passes over a prompt by their number of rows, with Intel's AMX or without.

    python -m benchmarks.amx MODEL.gguf [--threads 2] [--passes 5] [--without]

Passes of all numbers of rows take turns, and medians are printed. With `--without`, AMX is taken off llama.cpp's list
first. It needs a processor with AMX and a llama.cpp whose AMX works (docs/engine.md). The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from benchmarks.measured import machine
from mimo_gguf.llama.amx import AMX, kinds_of
from mimo_gguf.llama.api import ContextOptions, api, default_threads, libraries_of, load_model, open_context
from mimo_gguf.llama.batch import Batch

ROWS = (1, 2, 4, 8, 16, 32, 33, 64, 128, 512)


def seconds_of_passes(file: Path, n_threads: int, n_passes: int) -> dict[int, float]:
    """The median seconds of a pass, by its rows; each is the beginning of the same text."""
    options = ContextOptions(n_ctx=512, n_batch=512, n_ubatch=512, n_threads=n_threads)
    found: dict[int, list[float]] = {n: [] for n in ROWS}
    with load_model(file) as model, open_context(model, options) as context:
        batch = Batch(512)
        for _ in range(1 + n_passes):
            for n in ROWS:
                context.forget(0)
                batch.fill([40 + i % 200 for i in range(n)], 0, n_outputs=1)
                started = time.perf_counter()
                assert context.decode(batch.native) == 0
                found[n].append(time.perf_counter() - started)
    return {n: statistics.median(seconds[1:]) for n, seconds in found.items()}


def main() -> None:
    """Measures one way, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--without", action="store_true", help="without AMX")
    arguments = parser.parse_args()
    threads = arguments.threads or default_threads()
    kinds = kinds_of(libraries_of(api()))
    if kinds is None or AMX not in kinds.names:
        raise SystemExit("no AMX here, or none that works: mimo-gguf doctor")
    if arguments.without:
        kinds.leave_out_amx()
    found = seconds_of_passes(arguments.file, threads, arguments.passes)
    for n, seconds in found.items():
        print(f"{n:6} rows{1e3 * seconds:10.1f} ms")
    how = {"file": arguments.file.name, "threads": threads, "with_amx": not arguments.without}
    print(json.dumps({"machine": machine(), **how, "seconds": found}))


if __name__ == "__main__":
    main()
