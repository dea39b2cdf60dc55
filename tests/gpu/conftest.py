"""A GPU must be there: `make test-gpu` runs these tests, and on a software GPU if there is no other."""

from __future__ import annotations

import pytest

from benchmarks.gpu.memory import counts_others
from benchmarks.gpu.worker import add_worker
from mimo_gguf.hardware.devices import Device, list_devices


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The first GPU; without one the tests fail, since they were asked for."""
    add_worker()
    device = list_devices()[0]
    if not device.is_gpu:
        pytest.fail("llama.cpp sees no GPU; mimo-gguf doctor says why", pytrace=False)
    return device


@pytest.fixture(scope="session")
def shared_gpu(gpu: Device) -> Device:
    """The first GPU, if its driver counts what other programs use; Mesa's software GPU says that all is free."""
    if not counts_others(gpu):
        pytest.skip(f"{gpu.description} reports no memory as used, so other programs cannot be seen on it")
    return gpu
