"""The machine's memory as ggml, psutil and the control groups tell it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mimo_gguf.core.errors import BackendError
from mimo_gguf.hardware import devices
from mimo_gguf.hardware.devices import host_device, list_devices
from tests.workers import running_worker


def test_the_list_ends_with_the_host() -> None:
    *gpus, host = list_devices()
    assert not host.is_gpu and host.total_bytes > 0
    assert 0 < host.free_bytes <= host.total_bytes <= psutil.virtual_memory().total
    assert all(gpu.is_gpu and gpu.pointer for gpu in gpus)


def test_without_llama_cpp_the_host_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> list[devices.Device]:
        raise BackendError("llama-cpp-python cannot be loaded")

    monkeypatch.setattr(devices, "ggml_devices", missing)
    assert [device.name for device in list_devices()] == ["CPU"]


def test_a_worker_is_a_device_with_memory_of_its_own_until_it_goes_away() -> None:
    """In a process of its own: a worker stays registered with ggml, and would serve every later test."""
    code = """
import sys
from mimo_gguf.hardware.devices import list_devices
from mimo_gguf.hardware.rpc import add_workers
(worker,) = add_workers([sys.argv[1]])
assert worker.backend == "RPC" and worker.is_gpu and worker.description == sys.argv[1], worker
assert worker.total_bytes > 0 and worker.traits.alignment == 32 and worker.shares_host_memory, worker
assert [device.pointer for device in add_workers([sys.argv[1]])] == [worker.pointer]
assert [device.name for device in list_devices()] == [worker.name, "CPU"]
print("ready", flush=True)
sys.stdin.readline()
assert [device.name for device in list_devices()] == ["CPU"]
"""
    with running_worker() as endpoint:
        process = subprocess.Popen(
            [sys.executable, "-c", code, endpoint], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.communicate("the worker is gone\n", timeout=60)
    assert process.returncode == 0


def test_a_worker_at_work_can_be_looked_at_as_often_as_one_likes(tiny_path: Path) -> None:
    """It serves one connection at a time, and its queue is short: looking must not wait there."""
    code = """
import sys, time
from mimo_gguf.hardware.devices import list_devices
from mimo_gguf.hardware.rpc import add_workers
from mimo_gguf.runtime.model import Model

add_workers([sys.argv[2]])
with Model.load(sys.argv[1], n_ctx=512):
    started = time.monotonic()
    for _ in range(8):
        assert [device.name for device in list_devices()] == ["RPC0", "CPU"]
    assert time.monotonic() - started < 4, "it waited"
"""
    with running_worker() as endpoint:
        command = [sys.executable, "-c", code, str(tiny_path), endpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_limits", lambda: [(1 << 30, 200 << 20)])
    host = host_device()
    assert host.total_bytes == 1 << 30
    assert host.free_bytes == (1 << 30) - (200 << 20)
