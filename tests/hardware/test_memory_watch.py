"""The watch warns once per shortage, about the run's own devices, and not more often than asked."""

from __future__ import annotations

from dataclasses import replace

from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.hardware.devices import CPU, GPU, Device
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
