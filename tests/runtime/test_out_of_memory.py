"""Memory that really runs out although the plan fits: a worker that reports the machine's memory and cannot have it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.units import GIB
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import CPU, GPU, Device, host_device
from mimo_gguf.runtime.launch import choose_plan, next_smaller
from tests.cli.command_line import assert_clear_error, run
from tests.devices import only_on_a_cpu
from tests.tiny_models import make_model
from tests.workers import running_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to a limit of address space")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small weights and a large cache: 768 MiB at 32768 tokens."""
    heads: dict[str, Any] = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128}
    return make_model(tmp_path_factory.mktemp("oom"), max_position_embeddings=32768, **heads)


@pytest.fixture(scope="module")
def needs(path: Path) -> tuple[int, int]:
    """Bytes on the worker by the plan a chat makes, and by the one it takes next."""
    only_on_a_cpu("the worker is to be the only device; tests/gpu has one that refuses")
    devices = (Device("RPC0", "127.0.0.1:1", GPU, "RPC", 8 * GIB, 8 * GIB), Device("CPU", "", CPU, "CPU", 9 * GIB, 0))
    file = read_gguf(path)
    plan = choose_plan(file, Wishes(), devices)
    smaller = next_smaller(file, plan, Wishes())
    assert smaller is not None and host_device().free_bytes > 2 * GIB
    large, small = plan.needed_bytes["RPC0"], smaller.needed_bytes["RPC0"]
    assert large - small > 300 << 20  # room for what the worker needs beside
    return large, small


def chat(path: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    options = ("--max-tokens", "5", "--temp", "0", "--threads", "1", "--json", "--rpc", endpoint)
    return run(path.parent, "chat", path, "-p", "Hello", *options)


def test_one_step_down_when_a_devices_memory_runs_out(path: Path, needs: tuple[int, int]) -> None:
    with running_worker(room_bytes=sum(needs) // 2) as endpoint:
        done = chat(path, endpoint)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"]["generated"] == 5
    (warning,) = (line for line in done.stderr.splitlines() if line)
    for said in (
        "out of memory, although the plan left",
        "context 32768, KV cache f16",
        "allocate",
        "KV cache q8_0",
        "free on RPC0",
        "report",
    ):
        assert said in warning, said


def test_what_does_not_hold_either_is_one_clear_error(path: Path, needs: tuple[int, int]) -> None:
    with running_worker(room_bytes=needs[1] // 2) as endpoint:
        done = chat(path, endpoint)
    assert_clear_error(done, "allocate", "before, also with", "KV cache f16", code=1)
    assert "mimo-gguf fit" in done.stderr
