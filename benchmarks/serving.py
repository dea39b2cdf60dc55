"""Compares `mimo-gguf serve` with llama-server on one file, in one run, and says what serving adds to a token.

    python -m benchmarks.serving MODEL.gguf [--llama-server PROGRAM] [--clients 1 2 4 8] [--tokens 64] [--prompt 32]

Each client sends one request, all at the same moment, and reads the stream to its end. Prompts are random tokens, all
different; answers are greedy and of the same length. Every server stays loaded, and they take turns, round by round.
Speed is all tokens over the time from the first request to the last token. A gap is a client's mean time from one token
to the next. "Bare" is the scheduler in this process, without HTTP, on the same requests: what a gap has more than its
own is what serving adds to a token. llama-server drafts with one slot only, so its MTP is compared with one client.
The medians of all rounds are printed, and the ratios of the same rounds. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measured import machine
from mimo_gguf.chat.answer import AnswerOptions
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.engine.sampling import SamplingOptions
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.llama.api import default_threads
from mimo_gguf.runtime.model import Model
from mimo_gguf.runtime.scheduler import Request


@dataclass(frozen=True)
class Setting:
    """What every way of serving gets."""

    file: Path
    n_threads: int
    most_clients: int
    n_prompt: int
    n_tokens: int

    @property
    def n_ctx(self) -> int:
        """The context that all clients share."""
        return self.most_clients * (-(-(self.n_prompt + self.n_tokens + 16) // 256) * 256)

    def prompts(self, n: int, seed: int) -> list[list[int]]:
        """Prompts of tokens that are bytes in every vocabulary."""
        rng = random.Random(seed)
        return [[rng.randrange(32, 127) for _ in range(self.n_prompt)] for _ in range(n)]


@dataclass(frozen=True)
class Round:
    """What one round gave: tokens per second of all clients, and medians over the clients."""

    tokens_per_s: float
    first_token_s: float
    gap_s: float


@dataclass(frozen=True)
class Heard:
    """The times of one answer: its first token, its last, and how many there were."""

    first_s: float
    last_s: float
    n: int


PAIRS = (("ours, plain", "llama-server, plain"), ("ours, MTP", "llama-server, MTP"))
Way = Callable[[list[list[int]]], Round]


def as_round(heard: Sequence[Heard], began_s: float) -> Round:
    """The figures of clients that all began at the same moment."""
    seconds = max(each.last_s for each in heard) - began_s
    return Round(
        sum(each.n for each in heard) / seconds,
        statistics.median(each.first_s - began_s for each in heard),
        statistics.median((each.last_s - each.first_s) / (each.n - 1) for each in heard),
    )


# ---- over HTTP


async def _ask(port: int, body: dict[str, Any]) -> Heard:
    """Sends one request over a connection of its own, and reads the stream as cheaply as can be."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    first = last = 0.0
    usage = b""
    async for line in reader:
        if line.startswith(b"data: {"):
            if b'"choices":[]' not in line:
                last = time.perf_counter()
                first = first or last
            if b'"usage":{' in line:
                usage = line
    writer.close()
    if not usage:
        raise SystemExit(f"a request was not answered: {body}")
    return Heard(first, last, json.loads(usage[6:])["usage"]["completion_tokens"])


def over_http(port: int, name: str, n_tokens: int) -> Way:
    """The way of a server that listens on `port`."""
    body = {
        "model": name, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip

    async def ask_all(prompts: list[list[int]]) -> Round:
        began = time.perf_counter()
        heard = await asyncio.gather(*(_ask(port, {**body, "prompt": prompt}) for prompt in prompts))
        return as_round(heard, began)

    return lambda prompts: asyncio.run(ask_all(prompts))


@contextmanager
def ours(setting: Setting, *options: str) -> Iterator[Way]:
    """Starts `mimo-gguf serve`."""
    command = [
        sys.executable, "-m", "mimo_gguf", "serve", str(setting.file), "--port", "0", "--ctx", str(setting.n_ctx),
        "--parallel", str(setting.most_clients), "-t", str(setting.n_threads), "--cache-ram", "0", *options,
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                found = re.search(r"listening on http://\S+:(\d+)/", line)
                if found:
                    break
                print(line, end="", file=sys.stderr)
            else:
                raise SystemExit("mimo-gguf serve did not start")
            threading.Thread(target=process.stderr.read, daemon=True).start()  # or its pipe would be full some day
            yield over_http(int(found[1]), setting.file.stem, setting.n_tokens)
        finally:
            process.kill()


@contextmanager
def llama_server(program: Path, setting: Setting, n_slots: int, *options: str) -> Iterator[Way]:
    """Starts llama-server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(program), "-m", str(setting.file), "-c", str(setting.n_ctx // setting.most_clients * n_slots),
        "-np", str(n_slots), "-t", str(setting.n_threads), "-ngl", "0", "--host", "127.0.0.1", "--port", str(port),
        "--no-webui", *options,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit("llama-server did not start") from None
                    time.sleep(0.2)
            yield over_http(port, setting.file.stem, setting.n_tokens)
        finally:
            process.kill()


# ---- without a server


@contextmanager
def bare(setting: Setting) -> Iterator[Way]:
    """The scheduler alone, plain."""
    options = SessionOptions(
        n_ctx=setting.n_ctx, n_parallel=setting.most_clients, n_threads=setting.n_threads, mtp=False, n_prompt_rows=64
    )
    with Model.open(setting.file, options) as model:

        def measure(prompts: list[list[int]]) -> Round:
            how = SamplingOptions(temperature=0), AnswerOptions(max_tokens=setting.n_tokens, ignore_eos=True)
            began = time.perf_counter()
            ticket = model.driver.submit([Request(tuple(prompt), *how) for prompt in prompts])
            first: dict[int, float] = {}
            heard = []
            for event in ticket.events():
                now = time.perf_counter()
                if event.n_tokens:
                    first.setdefault(event.id, now)
                if event.answer is not None:
                    heard.append(Heard(first[event.id], now, len(event.answer.tokens)))
            return as_round(heard, began)

        yield measure


# ---- all of them


def run_all(
    ways: dict[str, Way], setting: Setting, clients: Sequence[int], n_rounds: int
) -> dict[tuple[str, int], list[Round]]:
    """The rounds of each way with each number of clients, after one that does not count."""
    found: dict[tuple[str, int], list[Round]] = {}
    for number, n in itertools.product(range(-1, n_rounds), clients):
        prompts = setting.prompts(n, seed=1000 * number + n)
        for name in list(ways) if number % 2 else list(reversed(ways)):
            if n > 1 and name == "llama-server, MTP":
                continue
            if number < 0 and n > 1:
                continue
            result = ways[name](prompts)
            if number >= 0:
                found.setdefault((name, n), []).append(result)
                print(f"{name:22}{n:3} clients {result.tokens_per_s:9.1f} tok/s", file=sys.stderr, flush=True)
    return found


def print_report(setting: Setting, clients: Sequence[int], found: dict[tuple[str, int], list[Round]]) -> None:
    """Prints a table, the ratios, and the document."""
    print(f"{setting.file.name}, {setting.n_threads} threads, prompts of {setting.n_prompt}, {setting.n_tokens} tokens")
    print(f"{'':22}{'clients':>8}{'tok/s':>10}{'first token':>14}{'gap':>12}")
    for (name, n), rounds in sorted(found.items(), key=lambda entry: (entry[0][1], entry[0][0])):
        print(
            f"{name:22}{n:8}{_median(rounds, 'tokens_per_s'):10.1f}{1e3 * _median(rounds, 'first_token_s'):11.1f} ms"
            f"{1e3 * _median(rounds, 'gap_s'):9.3f} ms"
        )
    ratios: dict[str, dict[str, float]] = {}
    for n, (a, b) in itertools.product(clients, PAIRS):
        if (a, n) in found and (b, n) in found:
            pairs = list(zip(found[a, n], found[b, n], strict=True))
            ratios[f"{a} / {b}, {n}"] = {
                "tokens_per_s": statistics.median(x.tokens_per_s / y.tokens_per_s for x, y in pairs),
                "first_token_s": statistics.median(x.first_token_s / y.first_token_s for x, y in pairs),
            }
    for name, ratio in ratios.items():
        print(f"{name:44} speed {ratio['tokens_per_s']:6.3f}   first token {ratio['first_token_s']:6.3f}")
    added = {
        n: statistics.median(x.gap_s - y.gap_s for x, y in zip(found["ours, plain", n], found["bare", n], strict=True))
        for n in clients
        if ("bare", n) in found
    }
    print("serving adds to a token: " + ", ".join(f"{1e3 * s:.3f} ms with {n} clients" for n, s in added.items()))
    document = {
        "machine": machine(), "setting": asdict(setting) | {"file": setting.file.name}, "ratios": ratios,
        "added_s": added, "rounds": {f"{name}, {n}": [asdict(r) for r in rs] for (name, n), rs in found.items()},
    }  # fmt: skip
    print(json.dumps(document))


def _median(rounds: Sequence[Round], name: str) -> float:
    return float(statistics.median(getattr(each, name) for each in rounds))


def main() -> None:
    """Starts everything, runs the rounds, prints the report."""
    arguments = _arguments()
    clients = sorted(arguments.clients)
    threads = arguments.threads or default_threads()
    setting = Setting(arguments.file, threads, clients[-1], arguments.prompt, arguments.tokens)
    header = read_gguf(setting.file)
    has_mtp = bool(header.value(f"{header.architecture}.nextn_predict_layers", 0))
    with ExitStack() as stack:
        ways = {"bare": stack.enter_context(bare(setting))} if not arguments.no_bare else {}
        ways["ours, plain"] = stack.enter_context(ours(setting, "--no-mtp"))
        if has_mtp:
            ways["ours, MTP"] = stack.enter_context(ours(setting, "--mtp"))
        if arguments.llama_server:
            program = arguments.llama_server
            ways["llama-server, plain"] = stack.enter_context(llama_server(program, setting, clients[-1]))
            if has_mtp:
                drafts = ("--spec-type", "draft-mtp", "--spec-draft-n-max", "1")
                ways["llama-server, MTP"] = stack.enter_context(llama_server(program, setting, 1, *drafts))
        print_report(setting, clients, run_all(ways, setting, clients, arguments.rounds))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's program, to compare with")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-bare", action="store_true", help="leave out the scheduler alone, which takes memory, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
