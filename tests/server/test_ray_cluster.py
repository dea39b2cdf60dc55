"""How many actors a cluster has room for, how rows come to them, and what is said if there is no cluster."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.server.ray_batch import choose_calls
from mimo_gguf.server.ray_cluster import Pool, RayNode, RayWishes, choose_pool, joined
from tests.batch.answerers import names_in, request, write_rows
from tests.cli.command_line import assert_clear_error, run_here

HEAD, SMALL, LARGE, CARDS = RayNode(0, 0), RayNode(8, 0), RayNode(20, 0), RayNode(16, 4)


@pytest.mark.parametrize(
    ("nodes", "wishes", "pool"),
    [
        ([SMALL], RayWishes(), Pool(1, 8, 0)),
        ([HEAD, SMALL, LARGE], RayWishes(), Pool(3, 8, 0)),  # two on the large one
        ([SMALL, LARGE], RayWishes(n_cpus=5), Pool(5, 5, 0)),
        ([SMALL, LARGE], RayWishes(workers=2, n_cpus=1), Pool(2, 1, 0)),
        ([SMALL, CARDS, CARDS], RayWishes(), Pool(8, 1, 1)),
        ([SMALL, CARDS, CARDS], RayWishes(n_gpus=2, n_cpus=9), Pool(2, 9, 2)),
        ([SMALL, CARDS], RayWishes(n_gpus=0), Pool(3, 8, 0)),
        ([SMALL, CARDS], RayWishes(n_cpus=8), Pool(3, 8, 0)),
        ([HEAD], RayWishes(workers=3, n_gpus=1), Pool(3, 1, 1)),  # they are waited for
    ],
)
def test_the_pool_fills_the_cluster(nodes: list[RayNode], wishes: RayWishes, pool: Pool) -> None:
    assert choose_pool(nodes, wishes) == pool


@pytest.mark.parametrize("wishes", [RayWishes(n_cpus=9), RayWishes(n_gpus=1)])
def test_a_cluster_without_room(wishes: RayWishes) -> None:
    with pytest.raises(UsageError, match=r"no machine of the Ray cluster has .*; there are 0 CPUs and 0 GPUs, 8 CPUs"):
        choose_pool([HEAD, SMALL], wishes)


@pytest.mark.parametrize(
    ("pool", "n_rows", "n_parallel"),
    [(Pool(1, 1, 0), 1, None), (Pool(2, 8, 0), 500, None), (Pool(8, 1, 1), 1_000_000, None), (Pool(2, 8, 0), 99, 3)],
)
def test_no_slot_waits_for_a_row(pool: Pool, n_rows: int, n_parallel: int | None) -> None:
    calls = choose_calls(pool, n_rows, n_parallel)
    slots = n_parallel or (64 if pool.n_gpus else 16)
    assert 2 * slots <= calls.n_rows * calls.n_open < 2 * slots + calls.n_rows
    assert calls.n_rows == 1 or calls.n_rows * calls.n_open * pool.n_actors * 4 <= n_rows + 16 * 4 * pool.n_actors
    assert calls.n_rows <= 16


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_what_is_said_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "in.jsonl", [request("a")])
    words = ("batch", "in.jsonl", "-o", "out.jsonl", "--model", "m.gguf")
    for options, said in (
        (["--workers", "2"], "--workers is for several machines"),
        (["--ray", "auto", "--rpc", "x:1"], "--ray and --rpc"),
        (["--ray", "auto", "--dry-run"], "--dry-run plans for this machine"),
        (["--ray", "ray://head:10001"], "ray://head:10001: not the address of a Ray cluster"),
        (["--ray", "head"], "head: not the address"),
    ):
        if importlib.util.find_spec("ray") is not None or "--workers" in options or len(options) > 2:
            assert_clear_error(run_here(tmp_path, *words, *options), said, code=2)
    assert_clear_error(run_here(tmp_path, "batch", "-", "--model", "m.gguf", "--ray", "auto"), "from a pipe", code=2)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    done = run_here(tmp_path, *words, "--ray", "auto")
    assert_clear_error(done, "several machines need Ray", code=2)
    assert "pip install 'mimo-gguf[ray]'" in done.stderr
    assert names_in(tmp_path) == ["in.jsonl"]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_an_address_at_which_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    address = closed_port()
    with pytest.raises(BackendError, match=f"{address}: no Ray cluster answers"), joined(address):
        raise AssertionError
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(BackendError, match="no Ray cluster answers") as error, joined("auto"):
        raise AssertionError
    assert "ray start --head" in str(error.value.hint)
