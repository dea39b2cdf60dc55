"""Measures a batch on a Ray cluster of this machine: what the one writer can take, and what Ray costs beside no Ray.

    python -m benchmarks.ray_batch [--rows 50000]             with actors that answer at once: rows per second
    python -m benchmarks.ray_batch MODEL.gguf [--rows 256]    with engines of one thread: without Ray, 1 actor, 2 actors

CPU seconds are those of the program and all of Ray's processes, from joining the cluster to the last answer; starting
the cluster is not counted. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.batch import AtOnce, write_rows
from benchmarks.measured import machine
from mimo_gguf.batch.answerer import Answerer
from mimo_gguf.batch.open_job import Source, open_job
from mimo_gguf.batch.rows import Run
from mimo_gguf.server.batch_settings import BatchSettings
from mimo_gguf.server.offline import batch
from mimo_gguf.server.ray_actor import Found, Order
from mimo_gguf.server.ray_batch import answer_on_ray, choose_calls
from mimo_gguf.server.ray_cluster import Pool


@dataclass(frozen=True)
class Figure:
    """The figures of one run.

    Attributes:
        seconds: from joining the cluster to the last answer, engines loaded on the way.
        cpu_s, driver_cpu_s: seconds of all cores: of everything, and of the writer alone.
        driver_mib: the largest memory of the writer so far.
    """

    label: str
    n_rows: int
    n_tokens: int
    seconds: float
    cpu_s: float
    driver_cpu_s: float
    driver_mib: float


def measured(label: str, n_rows: int, work: Callable[[], int]) -> Figure:
    """The figures of `work`, which gives the number of tokens that were generated."""
    began, cpu, own = time.perf_counter(), CLOCK.seconds(), time.process_time()
    n_tokens = work()
    seconds, own = time.perf_counter() - began, time.process_time() - own
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Figure(label, n_rows, n_tokens, seconds, CLOCK.seconds() - cpu, own, most)


class Clock(threading.Thread):
    """Adds up the CPU seconds of this process and all below it. What ends is counted as it was last seen.

    Ray ends its workers in its own way, so that no parent has their seconds afterwards.
    """

    EVERY_S = 0.25

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._seen: dict[tuple[int, float], float] = {}

    def run(self) -> None:
        """Looks again and again."""
        while True:
            self.seconds()
            time.sleep(self.EVERY_S)

    def seconds(self) -> float:
        """The seconds so far."""
        for each in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                self._seen[each.pid, each.create_time()] = times.user + times.system
        return sum(self._seen.copy().values())


CLOCK = Clock()


def at_once(order: Order) -> Answerer:
    """What answers in an actor that costs nothing."""
    return AtOnce()


def answer_at_once(folder: Path, n_rows: int, n_actors: int) -> Figure:
    """Rows that are answered at once."""
    write_rows(folder / "rows.jsonl", n_rows, 2)
    (folder / "out.jsonl").unlink(missing_ok=True)
    settings = BatchSettings("none.gguf")
    order = Order(Found(settings, ("none",), "none"), None, Pool(n_actors, 1, 0), None, n_rows)
    job, _ = open_job(Source(folder / "rows.jsonl", folder / "out.jsonl"), Run("none"), lambda row: None)

    def work() -> int:
        answer_on_ray(job, order, at_once)
        return job.finish().n_generated

    calls = choose_calls(order.pool, n_rows, None)
    return measured(f"at once, {n_actors} actors, {calls.n_rows} rows a parcel", n_rows, work)


def answer_with_engines(folder: Path, model: Path, n_rows: int, n_actors: int) -> Figure:
    """Rows that engines answer: without Ray for 0 actors."""
    (folder / "out.jsonl").unlink(missing_ok=True)
    how: dict[str, Any] = {"model": model, "threads": 1, "parallel": 8, "ctx": 2048}
    if n_actors:
        how |= {"ray": "auto", "workers": n_actors, "cpus_per_worker": 1}

    def work() -> int:
        return batch(folder / "rows.jsonl", out=folder / "out.jsonl", **how).n_generated

    return measured(f"engines, {n_actors} actors" if n_actors else "engine without Ray", n_rows, work)


def main() -> None:
    """Measures, and prints a table and a JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, help="[default: 50000, with a model 256]")
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    CLOCK.start()
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.model is None:
            n_rows = given.rows or 50_000
            found += [answer_at_once(folder, n, 2) for n in (n_rows // 10, n_rows)]
        else:
            n_rows = given.rows or 256
            write_rows(folder / "rows.jsonl", n_rows, given.tokens)
            found += [answer_with_engines(folder, given.model, n_rows, n) for n in (0, 1, 2)]
    for figure in found:
        rates = f"{figure.n_rows / figure.seconds:>9.1f} rows/s {figure.n_tokens / figure.seconds:>9.1f} tok/s"
        cpu = f"{figure.cpu_s:>7.1f} CPU s, writer {figure.driver_cpu_s:>6.1f}, {figure.driver_mib:>6.0f} MiB"
        print(f"{figure.label:<38}{rates} {cpu}")
    print(json.dumps({"machine": machine(), "ray": ray.__version__, "figures": [asdict(each) for each in found]}))


if __name__ == "__main__":
    main()
