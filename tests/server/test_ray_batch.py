"""Batches on a Ray cluster of two machines: what dies on the way costs no row, and changes no answer."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mimo_gguf.batch import pieces
from mimo_gguf.batch.job import BatchJob
from mimo_gguf.batch.open_job import Source, open_job
from mimo_gguf.batch.output import partial_path
from mimo_gguf.batch.progress import BatchProgress, Counts
from mimo_gguf.batch.rows import Run, name_of
from mimo_gguf.conversion.checkpoint_source import open_checkpoint
from mimo_gguf.core.errors import BackendError
from mimo_gguf.server import ray_batch
from mimo_gguf.server.batch_settings import BatchSettings
from mimo_gguf.server.ray_actor import Answered, Found, Order
from mimo_gguf.server.ray_batch import answer_on_ray
from mimo_gguf.server.ray_cluster import Pool, joined
from tests.batch.answerers import accept, names_in, read_lines, request, write_rows
from tests.cli.command_line import assert_clear_error, run_here
from tests.reference import MIMO_TINY
from tests.server.ray_machines import ROOT, Machines, machines, slow_echo
from tests.tiny_models import write_gguf

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as running:
        yield running


@pytest.fixture(scope="module")
def mimo_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with open_checkpoint(MIMO_TINY) as source:
        return write_gguf(source, tmp_path_factory.mktemp("spread") / "mimo-tiny.gguf")


def chat(number: int, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is {number} + 5?"}]
    body = {"messages": messages, "max_tokens": 24, "temperature": 0.9, "ignore_eos": True, **body}
    return {"custom_id": f"row {number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def said(path: Path) -> dict[str, tuple[int, str]]:
    """The status and the text, or the error, of each row. No row has two lines."""
    lines = read_lines(path)
    found = {line["custom_id"]: line["response"] for line in lines}
    assert len(found) == len(lines)
    return {
        name: (each["status_code"], (each["body"].get("choices") or [{"message": each["body"]}])[0]["message"])
        for name, each in found.items()
    }  # fmt: skip


def wait_for_lines(path: Path, n: int, goes_on: Callable[[], bool] = lambda: True) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < n:
        assert goes_on()
        time.sleep(0.02)


def actors() -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(each.info["cmdline"] or [])]


def test_an_actor_is_killed_and_the_answers_are_those_of_one_machine(
    cluster: Machines, mimo_tiny: Path, tmp_path: Path
) -> None:
    rows = [*(chat(number) for number in range(40)), chat(40, model="gpt-4o"), chat(41, speed=9)]
    write_rows(tmp_path / "in.jsonl", rows)
    words = ("--model", mimo_tiny, "--parallel", "2", "--ctx", "512", "--exact", "-t", "1", "--json")
    assert run_here(tmp_path, "batch", "in.jsonl", "-o", "alone.jsonl", *words).returncode == 0
    killed: list[int] = []

    def kill() -> None:
        wait_for_lines(partial_path(tmp_path / "spread.jsonl"), 6)
        process = actors()[0]
        process.send_signal(signal.SIGKILL)
        killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    spread = ("batch", "in.jsonl", "-o", "spread.jsonl", *words)
    done = run_here(tmp_path, *spread, "--ray", cluster.address)
    killer.join()
    assert done.returncode == 0 and "2 actors with 1 CPU each" in done.stderr, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["n_done"], figures["n_failed"], figures["n_generated"]) == (42, 2, 40 * 24) and killed
    assert said(tmp_path / "spread.jsonl") == said(tmp_path / "alone.jsonl")
    before = (tmp_path / "spread.jsonl").read_bytes()
    assert run_here(tmp_path, *spread).returncode == 0  # goes on from Ray's, too
    assert (tmp_path / "spread.jsonl").read_bytes() == before


def test_an_evaluation_is_that_of_one_machine(cluster: Machines, mimo_tiny: Path, tmp_path: Path) -> None:
    how = ("--limit", "6", "--max-tokens", "96", "--parallel", "2", "--ctx", "512", "--exact", "-t", "1", "--json")
    found = []
    for folder, more in (("alone", ()), ("spread", ("--ray", cluster.address))):
        done = run_here(tmp_path, "evaluate", mimo_tiny, "--task", "sums", "-o", folder, *how, *more)
        assert done.returncode == 0, done.stderr
        results = read_lines(tmp_path / folder / mimo_tiny.stem / "sums" / "results.jsonl")
        found.append({each["problem"]: (each["answer"], each["score"], each["tokens"]) for each in results})
    assert found[0] == found[1] and len(found[0]) == 6 and any(score for _, score, _ in found[0].values())


def order_of(n_rows: int) -> Order:
    settings = BatchSettings("echo.gguf", parallel=2)
    return Order(Found(settings, ("echo",), "echo"), None, Pool(2, 1, 0), None, n_rows)


def opened(tmp_path: Path, on_progress: Callable[[BatchProgress], None] = lambda progress: None) -> BatchJob:
    source = Source(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    return open_job(source, Run("echo"), accept, on_progress)[0]


def spread(tmp_path: Path, address: str, on_progress: Callable[[BatchProgress], None] = lambda progress: None) -> int:
    """Answers what is left with actors that need no model. Returns the number of rows that were left."""
    job = opened(tmp_path, on_progress)
    try:
        assert job.progress.n_rows is not None
        n_left = job.progress.n_rows - job.progress.n_done
        with joined(address):
            answer_on_ray(job, order_of(n_left), slow_echo)
        job.finish()
        return n_left
    finally:
        job.close()


DRIVER = """
    import sys
    from pathlib import Path
    from tests.server.test_ray_batch import spread
    spread(Path(sys.argv[1]), sys.argv[2])
"""


def test_the_driver_is_killed_and_then_a_machine_is_removed(
    cluster: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both machines are full, so that the lost actor has no place until the other one has answered the rest."""
    rows = [request(str(number), f"prompt {number:03}") for number in range(400)]
    write_rows(tmp_path / "in.jsonl", rows)
    partial = partial_path(tmp_path / "out.jsonl")
    words = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path), cluster.address]
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}) as driver:
        wait_for_lines(partial, 50, lambda: driver.poll() is None)
        driver.send_signal(signal.SIGKILL)
    assert names_in(tmp_path) == ["in.jsonl", "out.jsonl.partial"]
    removed: list[int] = []

    def remove(progress: BatchProgress) -> None:
        if progress.n_new >= 40 and not removed:
            removed.append(progress.n_done)
            cluster.do("remove")

    monkeypatch.setattr(pieces, "LOOK_AHEAD", 16)  # some pieces have no row that is left
    monkeypatch.setattr(ray_batch, "_PIECES_A_ROUND", 15)  # so that there is a second round
    n_left = spread(tmp_path, cluster.address, remove)
    assert removed[0] < 400 and 0 < n_left <= 350
    lines = read_lines(tmp_path / "out.jsonl")
    assert sorted(line["custom_id"] for line in lines) == sorted(row["custom_id"] for row in rows)
    texts = {line["custom_id"]: line["response"]["body"]["text"] for line in lines}
    assert texts == {row["custom_id"]: row["body"]["prompt"] for row in rows}


def test_what_a_machine_says_is_told(cluster: Machines, mimo_tiny: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [chat(1)])
    words = ("batch", "in.jsonl", "-o", "out.jsonl", "--ray", cluster.address)
    done = run_here(tmp_path, *words, "--model", "nothing.gguf")
    assert_clear_error(done, f"on {platform.node()}: ", "nothing.gguf: No such file")
    done = run_here(tmp_path, *words, "--model", mimo_tiny, "--cpus-per-worker", "9")
    assert_clear_error(done, "no machine of the Ray cluster has 9 CPUs", code=2)
    assert names_in(tmp_path) == ["in.jsonl"]


def test_rows_that_ray_loses_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "in.jsonl", [request("a"), request("b")])
    job = opened(tmp_path)
    line = b'{"custom_id": "a"}\n'
    once = Answered(rows=((name_of("a"), line, Counts(ok=True)),))
    monkeypatch.setattr(ray_batch, "_dataset", lambda *_: None)
    monkeypatch.setattr(ray_batch, "_answers", lambda *_: (each for each in [once, once]))
    try:
        with pytest.raises(BackendError, match="1 row came back without an answer"):
            answer_on_ray(job, order_of(2))
    finally:
        job.close()
    assert partial_path(tmp_path / "out.jsonl").read_bytes() == line  # not twice
