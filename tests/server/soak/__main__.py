"""A soak: many clients on loopback for minutes, then the memory, descriptors and threads of the server are looked at.

    python -m tests.server.soak --minutes 15

Every finished answer must be equal to the same request alone. The last line on stdout is one JSON document. The exit
code is 1 if anything was as it must not be.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from mimo_gguf import convert
from tests.server.hostile import hostile_requests
from tests.server.soak.clients import Soak, ask, one_client
from tests.server.soak.questions import COMPLETE, Question, questions, said

ROOT: Final = Path(__file__).resolve().parents[3]
_EVERY_S: Final = 2.0
_WARM: Final = (0.55, 0.7)  # the part of the run whose memory the end is compared with: pools are full by then
_END: Final = 0.85  # the end is what comes after this part
_GROWTH_BYTES: Final = 8 << 20  # of memory between these two that is not yet growth
_SETTLE_S: Final = 30.0


@dataclass(slots=True)
class Watch:
    """The server's resident bytes, as they were seen during the run."""

    process: psutil.Process
    began: float = field(default_factory=time.monotonic)
    seen: list[tuple[float, int]] = field(default_factory=list)

    async def run(self) -> None:
        """Looks every few seconds until it is cancelled."""
        while True:
            self.seen.append((time.monotonic() - self.began, self.process.memory_info().rss))
            await asyncio.sleep(_EVERY_S)

    def resident(self, first: float, last: float) -> int:
        """The median within a part of the run."""
        whole = self.seen[-1][0]
        return int(statistics.median(n for at, n in self.seen if first * whole <= at <= last * whole))

    def curve(self) -> list[int]:
        """Megabytes at twenty moments of the run."""
        step = max(len(self.seen) // 20, 1)
        return [n // 1_000_000 for _, n in self.seen[::step]]


@contextlib.contextmanager
def served(file: Path, parallel: int) -> Iterator[tuple[psutil.Process, int]]:
    """The process of a server and its port."""
    words = [sys.executable, "-m", "mimo_gguf", "serve", str(file), "--port", "0", "--exact", "--queue", "64"]
    words += ["--parallel", str(parallel), "--ctx", str(1024 * parallel), "-t", "1", "--cache-ram", "32MB"]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}  # no threads that come and go with other programs' work
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(words, stderr=log, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment) as process,
    ):
        try:
            found = None
            while found is None:
                time.sleep(0.2)
                log.seek(0)
                found = re.search(r"listening on http://\S+?:(\d+)", text := log.read())
                if process.poll() is not None:
                    raise SystemExit(text)
            yield psutil.Process(process.pid), int(found[1])
        finally:
            process.terminate()
            process.wait(60)
            log.seek(0)
            if (text := log.read()).count("Traceback"):
                print(text[text.index("Traceback") :][:3000], file=sys.stderr)


def open_things(process: psutil.Process) -> dict[str, int]:
    """The descriptors and threads of a process."""
    return {"descriptors": process.num_fds(), "threads": process.num_threads()}


async def settled(process: psutil.Process, wanted: dict[str, int]) -> dict[str, int]:
    """The descriptors and threads once they are no more than wanted, or after half a minute."""
    ends_at = time.monotonic() + _SETTLE_S
    while any(n > wanted[name] for name, n in open_things(process).items()) and time.monotonic() < ends_at:
        await asyncio.sleep(0.2)
    return open_things(process)


async def soaked(process: psutil.Process, port: int, *, minutes: float, n_clients: int, seed: int) -> dict[str, Any]:
    """Runs the clients. Returns the figures."""
    asked = questions()
    wanted = []
    for question in asked:
        reply = await ask(port, question)
        assert reply.status == 200, reply.body
        wanted.append(said(question.path, reply, streamed=False))
    hostile = list(hostile_requests(seed, 300))
    # All worker threads of the server are made by long bodies, a few at a time, and stay.
    long = Question(COMPLETE, {"prompt": "a" * 50_000})
    await asyncio.gather(*(ask(port, question) for question in [*asked, *[long] * 32]))
    await asyncio.sleep(3)  # until the connections of these are closed
    before = open_things(process)
    soak = Soak(port, asked, wanted, hostile, time.monotonic() + minutes * 60)
    watch = Watch(process)
    watching = asyncio.create_task(watch.run())
    await asyncio.gather(*(one_client(soak, seed * 1000 + number) for number in range(n_clients)))
    watching.cancel()
    after = await settled(process, before)
    warm, end = watch.resident(*_WARM), watch.resident(_END, 1.0)
    for name, n in after.items():
        if n > before[name]:
            soak.note_fault(f"{n} {name}, {before[name]} before")
    if end > warm + _GROWTH_BYTES:
        soak.note_fault(f"{end} resident bytes, {warm} after the warm-up")
    for fault, n in Counter(soak.faults).most_common(20):
        print(f"{n} x {fault}", file=sys.stderr)
    return {
        "minutes": minutes, "clients": n_clients, "seed": seed, "counts": dict(sorted(soak.counts.items())),
        "resident_bytes_warm": warm, "resident_bytes_end": end, "resident_mb": watch.curve(), "before": before,
        "after": after,
        "faults": len(soak.faults),
    }  # fmt: skip


def main() -> int:
    """Runs a soak on the tiny model, or on a file."""
    parser = argparse.ArgumentParser(prog="python -m tests.server.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", type=Path, help="a GGUF file [default: the tiny model of this repository]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = given.file
        if file is None:
            file = Path(folder) / "mimo-tiny.gguf"
            convert(ROOT / "examples" / "mimo-tiny", out=file, types="F16")
        with served(file, given.parallel) as (process, port):
            run = soaked(process, port, minutes=given.minutes, n_clients=given.clients, seed=given.seed)
            figures = asyncio.run(run)
    print(json.dumps(figures))
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
