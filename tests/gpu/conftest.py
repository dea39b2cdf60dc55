"""A GPU must be there: `make test-gpu` runs these tests, and on a software GPU if there is no other."""

from __future__ import annotations

import pytest

from benchmarks.gpu.memory import ballast
from mimo_gguf.core.units import MIB
from mimo_gguf.hardware.devices import Device, list_devices


@pytest.fixture(scope="session")
def gpu() -> Device:
    """The first GPU; without one the tests fail, since they were asked for."""
    device = list_devices()[0]
    if not device.is_gpu:
        pytest.fail("llama.cpp sees no GPU; mimo-gguf doctor says why", pytrace=False)
    return device


@pytest.fixture(scope="session")
def shared_gpu(gpu: Device) -> Device:
    """The first GPU, if its driver counts what other programs use; Mesa's software GPU says that all is free."""
    with ballast(256 * MIB):
        if list_devices()[0].free_bytes > gpu.free_bytes - 128 * MIB:
            pytest.skip(f"{gpu.description} reports no memory as used, so other programs cannot be seen on it")
    return gpu
