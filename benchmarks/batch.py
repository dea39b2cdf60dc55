"""Measures a batch beside llama-server with as many slots, which a client keeps full: tokens per second of all rows.

    python -m benchmarks.batch MODEL.gguf --server llama-server [--parallel 8] [--rows 256] [--tokens 64] [--rounds 3]

Both answer the same completions, greedy and to the full length. The client of llama-server has a connection for each
slot and one more for each, so that a row waits for every slot. Loading is not counted, but for the CPU seconds, which
are those of the whole program. Rounds alternate; the best one counts, because other work of the machine only adds time.
`--driver` measures the loop alone, with an answerer that answers at once. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.measured import machine
from mimo_gguf.batch.loop import answer_rows
from mimo_gguf.batch.open_job import Source, open_job
from mimo_gguf.batch.rows import Result, Row, Run

_URL: Final = "/v1/completions"
_QUESTIONS: Final = ("What is {} + 25?", "Who are you? I am number {}.", "Name {} colours, please.", "Count to {}.")


@dataclass(frozen=True)
class Figure:
    """The figures of one program, in its best round.

    Attributes:
        cpu_s: seconds of all cores that the program took, from its start to its end.
    """

    program: str
    n_tokens: int
    seconds: float
    cpu_s: float

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of all rows together."""
        return self.n_tokens / self.seconds


def write_rows(path: Path, n_rows: int, n_tokens: int) -> list[dict[str, Any]]:
    """A file of rows, and their bodies."""
    bodies = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(n_rows):
            question = _QUESTIONS[number % len(_QUESTIONS)].format(number)
            prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            bodies.append({"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True})
            row = {"custom_id": str(number), "method": "POST", "url": _URL, "body": bodies[-1]}
            file.write(json.dumps(row) + "\n")
    return bodies


def run_ours(model: Path, rows: Path, out: Path, options: Sequence[str]) -> Figure:
    """One run of `mimo-gguf batch`."""
    words = [sys.executable, "-m", "mimo_gguf", "batch", str(rows), "-o", str(out), "--model", str(model), *options]
    out.unlink(missing_ok=True)
    with subprocess.Popen([*words, "--json", "--quiet"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        figures = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0 and not figures["n_failed"], figures
    return Figure("ours", figures["n_generated"], figures["seconds"], used.ru_utime + used.ru_stime)


def run_server(program: Path, model: Path, bodies: list[dict[str, Any]], n: int, options: Sequence[str]) -> Figure:
    """One run of llama-server, from an idle one to the last answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-np", str(n), *options]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            began = time.perf_counter()
            n_tokens = asyncio.run(ask_all(port, bodies, 2 * n))
            seconds = time.perf_counter() - began
        finally:
            process.kill()  # one that is told to end may hang
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    return Figure("llama-server", n_tokens, seconds, used.ru_utime + used.ru_stime)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until a server answers."""
    while process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(0.1)
    raise SystemExit("llama-server has ended")


async def ask_all(port: int, bodies: list[dict[str, Any]], n_connections: int) -> int:
    """Asks everything, over so many connections that stay open. Returns the number of tokens."""
    left: Iterator[dict[str, Any]] = iter(bodies)

    async def work() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        n_tokens = 0
        for body in left:
            raw = json.dumps(body).encode()
            head = f"POST {_URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(raw)}\r\n\r\n"
            writer.write(head.encode() + raw)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            document = json.loads(await reader.readexactly(int(length.partition(b":")[2])))
            n_tokens += document["usage"]["completion_tokens"]
        writer.close()
        return n_tokens

    return sum(await asyncio.gather(*(work() for _ in range(n_connections))))


class AtOnce:
    """An answerer that costs nothing."""

    n_in_flight = 64
    fingerprint = "at once"

    async def answer(self, row: Row) -> Result:
        """The same small document for every row."""
        return Result(200, {"choices": [{"text": "42"}], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})


def measure_driver(folder: Path, n_rows: int) -> dict[str, float]:
    """Rows per second of the loop alone, on one core, and of going on with a finished half."""
    rows, answerer = folder / "rows.jsonl", AtOnce()
    write_rows(rows, n_rows, 2)
    began = time.process_time()
    job, _ = open_job(Source(rows, folder / "out.jsonl"), Run(answerer.fingerprint), lambda row: None)
    looked = time.process_time()
    asyncio.run(answer_rows(job, answerer))
    job.finish()
    ended = time.process_time()
    again, _ = open_job(Source(rows, folder / "out.jsonl"), Run(answerer.fingerprint), lambda row: None)
    again.close()
    resumed = time.process_time()
    return {
        "rows": n_rows, "survey_rows_per_s": n_rows / (looked - began), "rows_per_s": n_rows / (ended - looked),
        "resume_rows_per_s": n_rows / (resumed - ended),
    }  # fmt: skip


def main() -> None:
    """Measures, and prints a table and a JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--server", type=Path, help="llama-server")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--driver", type=int, metavar="ROWS", help="measure the loop alone, with so many rows")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.driver:
            print(json.dumps(measure_driver(folder, given.driver)))
            return
        bodies = write_rows(folder / "rows.jsonl", given.rows, given.tokens)
        n_ctx = str(given.parallel * 256)
        ours = ["-t", str(given.threads), "--parallel", str(given.parallel), "--ctx", n_ctx]
        theirs = ["-t", str(given.threads), "-c", n_ctx, "--no-webui"]
        found: dict[str, list[Figure]] = {}
        for _ in range(given.rounds):
            for way, extra in (("as it comes", []), ("plain", ["--no-mtp"])):
                figure = run_ours(given.model, folder / "rows.jsonl", folder / "out.jsonl", [*ours, *extra])
                found.setdefault(f"ours, {way}", []).append(figure)
            if given.server is not None:
                figure = run_server(given.server, given.model, bodies, given.parallel, theirs)
                found.setdefault("llama-server", []).append(figure)
    best = {name: max(figures, key=lambda figure: figure.tokens_per_s) for name, figures in found.items()}
    for label, figure in best.items():
        print(f"{label:<20}{figure.tokens_per_s:>9.1f} tok/s {figure.cpu_s:>7.1f} CPU s")
    print(json.dumps({"machine": machine(), "best": {label: asdict(figure) for label, figure in best.items()}}))


if __name__ == "__main__":
    main()
