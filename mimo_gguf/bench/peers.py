"""Measures llama.cpp's own programs, llama-bench and llama-server, in the same way as ours."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from mimo_gguf.bench.same_text import is_same_text
from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.core.units import counted

_START_S: Final = 600


@dataclass(frozen=True, slots=True)
class PeerFigure:
    """The figures of a peer; None for what it does not measure.

    Attributes:
        kind: of the text; empty for llama-bench, which reads no text.
        acceptance: share of the drafts that were accepted.
        same_text: whether it made the text that ours makes in the first way.
    """

    program: str
    kind: str
    n_draft: int
    prompt_tokens_per_s: float | None
    tokens_per_s: float
    acceptance: float | None = None
    same_text: bool | None = None

    @property
    def way(self) -> str:
        """The way it was run in: `plain`, `1 draft`, `2 drafts`."""
        return way_text(self.n_draft)


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """The options of a peer's run, the same as those of ours.

    Attributes:
        n_depth: tokens in llama-bench's cache before it measures, as the prompt is in ours.
    """

    n_prompt: int
    n_generate: int
    n_threads: int
    n_gpu_layers: int
    n_ctx: int
    repetitions: int
    n_depth: int = 0
    kv_type: str = "f16"
    drafts: tuple[int, ...] = (0, 1)


def way_text(n_draft: int) -> str:
    """The name of a way of generating: `plain`, `1 draft`, `2 drafts`."""
    return counted(n_draft, "draft") if n_draft else "plain"


def check_peer(program: Path) -> None:
    """Raises UsageError if `program` does not exist, or is not called llama-bench or llama-server."""
    if not program.is_file():
        raise UsageError(f"{program}: no such program", hint="give the path of llama-bench or llama-server")
    if program.stem not in ("llama-bench", "llama-server"):
        raise UsageError(f"{program}: neither llama-bench nor llama-server", hint="give the path of one of these")


def measure_peer(
    program: Path,
    model: Path,
    options: PeerOptions,
    prompts: Mapping[str, str],
    texts: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[PeerFigure]:
    """Measures llama-bench, or llama-server with each of `prompts` (by kind) and each number of drafts.

    Args:
        texts: the tokens that ours makes, by kind, to compare the peer's with.

    Raises:
        UsageError: no such program, or another one.
        BackendError: the program failed; the message has the end of its output.
    """
    check_peer(program)
    if program.stem == "llama-bench":
        yield _llama_bench(program, model, options)
        return
    for n_draft in options.drafts:
        yield from _llama_server(program, model, options, prompts, texts or {}, n_draft)


def _llama_bench(program: Path, model: Path, options: PeerOptions) -> PeerFigure:
    arguments = [
        "-m", str(model), "-p", str(options.n_prompt), "-n", str(options.n_generate), "-t", str(options.n_threads),
        "-ngl", str(options.n_gpu_layers), "-r", str(options.repetitions), "-d", str(options.n_depth), "-o", "json",
        "-ctk", options.kv_type, "-ctv", options.kv_type,
    ]  # fmt: skip
    run = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        raise BackendError(f"{program} failed: {run.stderr[-300:].strip()}", hint="run it by hand to see more")
    rows: list[dict[str, Any]] = json.loads(run.stdout)
    prompt = next(float(row["avg_ts"]) for row in rows if row["n_prompt"])
    return PeerFigure("llama-bench", "", 0, prompt, next(float(row["avg_ts"]) for row in rows if row["n_gen"]))


def _llama_server(
    program: Path,
    model: Path,
    options: PeerOptions,
    prompts: Mapping[str, str],
    texts: Mapping[str, Sequence[int]],
    n_draft: int,
) -> Iterator[PeerFigure]:
    with running_server(program, model, options, n_draft) as address:
        for kind, prompt in prompts.items():
            answers = [serve_once(address, prompt, options.n_generate) for _ in range(options.repetitions)]
            runs = [answer.timings for answer in answers]
            comparable = kind in texts and all(answer.tokens for answer in answers)
            drafted, accepted = (sum(int(run.get(key, 0)) for run in runs) for key in ("draft_n", "draft_n_accepted"))
            yield PeerFigure(
                "llama-server",
                kind,
                n_draft,
                statistics.median(float(run["prompt_per_second"]) for run in runs),
                statistics.median(float(run["predicted_per_second"]) for run in runs),
                accepted / drafted if drafted else None,
                all(is_same_text(answer.tokens, texts[kind]) for answer in answers) if comparable else None,
            )


@contextlib.contextmanager
def running_server(program: Path, model: Path, options: PeerOptions, n_draft: int) -> Iterator[str]:
    """Runs a llama-server on loopback, gives its address, and always stops it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [
        "-m", str(model), "-c", str(options.n_ctx), "-t", str(options.n_threads), "-ngl", str(options.n_gpu_layers),
        "-np", "1", "--host", "127.0.0.1", "--port", str(port), "--no-webui", "-ctk", options.kv_type,
        "-ctv", options.kv_type,
    ]  # fmt: skip
    if n_draft:
        arguments += ["--spec-type", "draft-mtp", "--spec-draft-n-max", str(n_draft)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([str(program), *arguments], stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, address, log, program)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Any, program: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    log.seek(0)
    raise BackendError(f"{program} did not start: {log.read()[-300:].strip()}", hint="run it by hand to see more")


class Served(NamedTuple):
    """A server's answer: its own timings, and the tokens, empty if the server does not return them."""

    timings: dict[str, Any]
    tokens: list[int]


def serve_once(address: str, prompt: str, n_generate: int) -> Served:
    """Asks the server at `address` to continue `prompt` greedily, with nothing cached."""
    body = {
        "prompt": prompt, "n_predict": n_generate, "temperature": 0, "ignore_eos": True, "cache_prompt": False,
        "top_k": 1, "return_tokens": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_START_S) as answer:
        document: dict[str, Any] = json.load(answer)
        return Served(document["timings"], document.get("tokens", []))
