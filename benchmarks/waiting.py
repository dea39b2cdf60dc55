"""Measures how fast tokens come while other programs want the cores, for several ways in which threads wait.

    python -m benchmarks.waiting MODEL.gguf [--busy 0 1 3] [--seconds 6] [--rounds 3] [--threads 2]
                                [--prompt 256] [--ways ours passive]

Each way runs in a process of its own, because libgomp reads its variables once. The ways are this program's own (it
switches between spinning and sleeping), libgomp's, passive waiting, two spin counts, and one thread. Rounds alternate
between the ways; the median counts. The other programs are endless loops, one process each. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measured import machine

# way -> (environment, threads; 0 means --threads). 300000 is libgomp's value if nothing is set.
WAYS: dict[str, tuple[dict[str, str], int]] = {
    "ours": ({}, 0),
    "libgomp's default": ({"GOMP_SPINCOUNT": "300000"}, 0),
    "passive": ({"OMP_WAIT_POLICY": "passive"}, 0),
    "GOMP_SPINCOUNT=1000": ({"GOMP_SPINCOUNT": "1000"}, 0),
    "GOMP_SPINCOUNT=20000": ({"GOMP_SPINCOUNT": "20000"}, 0),
    "one thread": ({}, 1),
}
KINDS = ("plain", "drafted", "reading")

MEASURE = """
import json, sys, time
from mimo_gguf.engine.sampling import Sampler, SamplingOptions
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.engine.single import next_token, read_prompt
from mimo_gguf.llama.api import load_model

path, threads, seconds, n_prompt = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
figures = {}
with load_model(path) as model:
    prompt = [(7 * i) % 1000 for i in range(n_prompt)]
    for kind, mtp in (("plain", False), ("drafted", True)):
        with Session(model, SessionOptions(n_ctx=8192, n_threads=threads, mtp=mtp, adaptive=False)) as session:
            with Sampler(model, SamplingOptions(temperature=0)) as sampler:
                read_prompt(session, prompt[:8])
                next_token(session, sampler)
                n, started = 0, time.perf_counter()
                while time.perf_counter() - started < seconds and n < 8000:
                    next_token(session, sampler)
                    n += 1
                figures[kind] = n / (time.perf_counter() - started)
            if not mtp:
                session.drop_unfinished(session.slot)
                n, started = 0, time.perf_counter()
                while time.perf_counter() - started < seconds:
                    session.reset(session.slot)
                    read_prompt(session, prompt)
                    n += len(prompt)
                figures["reading"] = n / (time.perf_counter() - started)
print(json.dumps(figures))
"""


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Runs `n` other programs, each of which wants a core all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    time.sleep(0.3 if n else 0)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(path: Path, way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measures the tokens per second of each kind."""
    environment, threads = WAYS[way]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    numbers = (threads or arguments.threads, arguments.seconds, arguments.prompt)
    command = [sys.executable, "-c", MEASURE, str(path), *map(str, numbers)]
    done = subprocess.run(command, env=kept | environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    arguments = _arguments()
    results = []
    for n in arguments.busy:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in arguments.ways}
        with busy(n):
            for _ in range(arguments.rounds):
                for way, found in runs.items():
                    found.append(measure(arguments.file, way, arguments))
        print(f"{arguments.file.name}, {arguments.threads} threads, {n} other busy programs: tok/s")
        print(f"{'':24}" + "".join(f"{kind:>12}" for kind in KINDS))
        for way, found in runs.items():
            medians = {kind: statistics.median(figures[kind] for figures in found) for kind in KINDS}
            print(f"{way:24}" + "".join(f"{medians[kind]:12.1f}" for kind in KINDS))
            results.append({"busy": n, "way": way, **medians})
    print(json.dumps({"machine": machine(), "file": arguments.file.name, "results": results}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt that is read again and again")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
