"""The watch warns once per shortage, about the run's own devices, and not more often than asked."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.hardware.devices import CPU, GPU, Device, host_device
from mimo_gguf.hardware.memory_watch import MemoryWatch


def test_one_warning_per_shortage() -> None:
    host = Device("CPU", "", CPU, "CPU", 8 * GIB, 16 * GIB)
    card = Device("CUDA0", "", GPU, "CUDA", 1 * GIB, 8 * GIB)
    other = Device("CUDA1", "", GPU, "CUDA", 0, 8 * GIB)
    silent = Device("RPC0", "", GPU, "RPC", 0, 0)
    now = [0.0]
    machine = [host, card, other, silent]
    watch = MemoryWatch(["CPU", "CUDA0", "RPC0"], 2.0, lambda: machine, lambda: now[0])

    def later(free_bytes: int) -> tuple[str, ...]:
        now[0] += 2.0
        machine[1] = replace(card, free_bytes=free_bytes)
        return watch.poll()

    assert watch.poll() == ()
    (warning,) = later(100 * MIB)
    assert "CUDA0" in warning and "100.0 MiB" in warning and "other programs need it" in warning
    assert later(90 * MIB) == ()
    assert later(200 * MIB) == ()  # not recovered yet
    assert later(90 * MIB) == ()
    assert later(2 * GIB) == ()
    machine[1] = replace(card, free_bytes=0)
    assert watch.poll() == ()  # too soon
    assert len(later(0)) == 1


@contextmanager
def another_program(n_bytes: int) -> Iterator[None]:
    """A process that has so much of the host's memory in use."""
    code = f"import sys; held = b'1' * {n_bytes}; print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield
    finally:
        process.kill()
        process.wait()


def test_another_program_takes_the_memory_while_we_run() -> None:
    """The figures are the system's own, less a constant: all but 1 GiB of what is free now counts as gone.

    Other programs of the machine may give memory back meanwhile, so it is tried up to three times.
    """
    warnings = next(filter(None, (warnings_beside_another_program() for _ in range(3))), ())
    assert len(warnings) == 1
    assert "left on CPU" in warnings[0] and "answers will slow down" in warnings[0]


def warnings_beside_another_program() -> tuple[str, ...]:
    """What the watch says, before it says that nothing is new and that all is well again."""
    elsewhere = host_device().free_bytes - 1 * GIB
    assert elsewhere > 1 * GIB, "this test needs 2 GiB of free memory"

    def read() -> list[Device]:
        host = host_device()
        return [replace(host, free_bytes=max(host.free_bytes - elsewhere, 0))]

    watch = MemoryWatch(["CPU"], interval_s=0, read=read)
    assert watch.poll() == ()
    with another_program(3 * GIB // 2):
        warnings = watch.poll()
        assert not warnings or watch.poll() == ()
    assert watch.poll() == ()
    return warnings
