"""While `chat` runs, free memory is watched: from the device list to the line on the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.hardware import devices
from mimo_gguf.hardware.devices import CPU, Device
from tests.cli.command_line import run_here
from tests.tiny_models import make_model


def test_a_shortage_that_comes_later_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model(tmp_path)
    free = [8 * GIB]  # while the plan is made; the program that needs the rest starts afterwards

    def host() -> Device:
        return Device("CPU", "host memory", CPU, "CPU", free.pop() if free else 50 * MIB, 8 * GIB)

    monkeypatch.setattr(devices, "host_device", host)
    done = run_here(tmp_path, "chat", path, "-p", "Hello", "--ctx", "256", "--max-tokens", "20", "--temp", "0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("only 50.0 MiB are left on CPU") == 1
