"""Compares predicted memory with llama.cpp's own count, on every cell of the grid, for the table of docs/memory.md.

    python -m benchmarks.memory_agreement [--gpu] [--step N] [--write]

It runs from a checkout, in about a quarter of an hour on two cores, without weights or downloads. Each file is a header
of full size and then a hole. The RPC devices are workers on loopback. `--gpu` compares on the first GPU instead; Mesa's
software GPU will do (docs/gpu.md). `--step N` uses every Nth cell, `--write` puts the table into docs/memory.md between
its markers. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mimo_gguf.fit.breakdown import AskedMemory, read_memory
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.hardware.rpc import add_workers
from mimo_gguf.memory import compute as memory_compute
from tests import full_size
from tests.memory.agreement import Cell, can_run, grid, parallel_grid, predict, write_files
from tests.workers import running_worker

DOCUMENT = Path(__file__).parents[1] / "docs" / "memory.md"
HERE = "gpu"  # instead of endpoints: the GPU of this machine


@dataclass
class Tally:
    """The counts of one row of the table.

    Attributes:
        worst: the largest difference, as a share of llama.cpp's count.
        predicted_s: seconds of the slowest prediction, with nothing cached.
        asked_s: seconds of the slowest answer of llama.cpp.
    """

    cells: int = 0
    equal: int = 0
    worst: float = 0.0
    predicted_s: float = 0.0
    asked_s: float = 0.0
    largest_bytes: int = 0
    smallest_bytes: int = 1 << 62
    differing: list[str] = field(default_factory=list)

    def add(self, predicted: tuple[AskedMemory, ...], asked: tuple[AskedMemory, ...], label: str) -> None:
        self.cells += 1
        total = sum(memory.n_bytes for memory in asked)
        self.largest_bytes, self.smallest_bytes = max(self.largest_bytes, total), min(self.smallest_bytes, total)
        if predicted == asked:
            self.equal += 1
            return
        self.differing.append(label)
        for mine, theirs in zip(predicted, asked, strict=True):
            self.worst = max(self.worst, abs(mine.n_bytes - theirs.n_bytes) / max(theirs.n_bytes, 1))


def measure(cells: list[Cell], folder: Path, devices: tuple[Device, ...]) -> dict[str, Tally]:
    """Counts the cells of each row of the table, by its label "layout | type"; those that cannot run are left out."""
    files = write_files(folder)
    sizes = {key: full_size.sizes(*key) for key in files}
    tallies: dict[str, Tally] = defaultdict(Tally)
    for cell in cells:
        key = (cell.layout, cell.file_type)
        if not can_run(sizes[key], cell.settings, devices):
            continue
        several = ", 2 to 4 conversations" if cell.settings.n_seq_max > 1 else ""
        tally = tallies[f"{cell.layout} | {cell.file_type}{several}"]
        memory_compute._replay.cache_clear()
        start = time.perf_counter()
        predicted = predict(sizes[key], cell.settings, devices)
        middle = time.perf_counter()
        asked = read_memory(files[key], cell.settings, devices)
        tally.predicted_s = max(tally.predicted_s, middle - start)
        tally.asked_s = max(tally.asked_s, time.perf_counter() - middle)
        tally.add(predicted, asked, f"{key} {cell.settings}")
    return dict(tallies)


def worker_main(step: int, endpoints: list[str]) -> None:
    """Measures one set of devices, in this process of its own, and prints its tallies as JSON."""
    devices = gpu_here() if endpoints == [HERE] else add_workers(endpoints) if endpoints else ()
    cells = [cell for cell in (*grid(), *parallel_grid()) if endpoints or cell.settings.n_gpu_layers == 0][::step]
    with tempfile.TemporaryDirectory() as folder:
        tallies = measure(cells, Path(folder), devices)
    print(json.dumps({label: tally.__dict__ for label, tally in tallies.items()}))


def gpu_here() -> tuple[Device, ...]:
    """The first GPU that llama.cpp sees."""
    device = list_devices()[0]
    if not device.is_gpu:
        raise SystemExit("llama.cpp sees no GPU here; mimo-gguf doctor says why")
    return (device,)


def run_device_set(step: int, n_workers: int | None) -> dict[str, Tally]:
    """Measures in a process of its own: on so many workers, or on this machine's GPU if `n_workers` is None."""
    with ExitStack() as stack:
        workers = [stack.enter_context(running_worker()) for _ in range(n_workers or 0)]
        endpoints = workers if n_workers is not None else [HERE]
        command = [sys.executable, "-m", "benchmarks.memory_agreement", "--step", str(step), "--cells-of", *endpoints]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {label: Tally(**values) for label, values in json.loads(done.stdout.splitlines()[-1]).items()}


def table(results: dict[str, dict[str, Tally]]) -> str:
    lines = [
        "| device | layout | type | cells | equal to the byte | largest difference | GiB asked |",
        "|---|---|---|---|---|---|---|",
    ]
    for device, tallies in results.items():
        for label, t in tallies.items():
            sizes = f"{t.smallest_bytes / (1 << 30):.1f} to {t.largest_bytes / (1 << 30):.1f}"
            lines.append(f"| {device} | {label} | {t.cells} | {t.equal} | {t.worst:.4%} | {sizes} |")
    return "\n".join(lines)


def write_table(text: str, name: str) -> None:
    """Puts the table into the document, between the markers of `name`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    document = DOCUMENT.read_text(encoding="utf-8")
    before, after = document.split(begin)[0], document.split(end)[1]
    DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--cells-of", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cells_of is not None:
        worker_main(options.step, options.cells_of)
        return
    names: dict[int | None, str] = {0: "CPU", 1: "CPU + 1 RPC", 2: "CPU + 2 RPC"}
    if options.gpu:
        names = {None: f"{gpu_here()[0].backend}: {gpu_here()[0].description}"}
    results = {name: run_device_set(options.step, n) for n, name in names.items()}
    text = table(results)
    print(text)
    if options.write:
        write_table(text, "agreement gpu" if options.gpu else "agreement")
    every = [tally for tallies in results.values() for tally in tallies.values()]
    print(
        json.dumps(
            {
                "cells": sum(t.cells for t in every),
                "equal": sum(t.equal for t in every),
                "worst": max(t.worst for t in every),
                "slowest_predicted_ms": round(1000 * max(t.predicted_s for t in every), 1),
                "slowest_asked_ms": round(1000 * max(t.asked_s for t in every), 1),
                "differing": [label for t in every for label in t.differing][:20],
            }
        )
    )


if __name__ == "__main__":
    main()
