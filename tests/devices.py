"""What llama.cpp computes on in these tests: the CPU, or a GPU with `make test-gpu`."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.gpu.memory import is_software
from mimo_gguf.hardware.devices import list_devices


@cache
def on_gpu() -> bool:
    """Whether it is a GPU, which rounds products and sums in its own way."""
    return list_devices()[0].is_gpu


@cache
def on_software_gpu() -> bool:
    """Whether it is a GPU that the CPU plays: such a one takes 30 to 80 ms for a pass of a tiny model."""
    return on_gpu() and is_software(list_devices()[0])


def only_on_a_cpu(reason: str) -> None:
    """Skips the test if llama.cpp computes on a GPU."""
    if on_gpu():
        pytest.skip(reason)
