"""A stand-in for nvidia-ml-py on a machine without NVIDIA's driver."""

from __future__ import annotations

import types
from collections.abc import Sequence

GIB = 1 << 30


class NVMLError(Exception):
    pass


def fake_nvml(
    bus_id: bytes | str, compute: Sequence[tuple[int, int | None]], graphics: Sequence[tuple[int, int | None]] = ()
) -> types.SimpleNamespace:
    """One card of 8 GiB at `bus_id` with these (pid, bytes) on it."""

    def processes(of: Sequence[tuple[int, int | None]]) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=n_bytes) for pid, n_bytes in of]

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA GeForce RTX 4060",
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(free=3 * GIB, total=8 * GIB),
        nvmlDeviceGetPciInfo=lambda handle: types.SimpleNamespace(busId=bus_id),
        nvmlDeviceGetComputeRunningProcesses=lambda handle: processes(compute),
        nvmlDeviceGetGraphicsRunningProcesses=lambda handle: processes(graphics),
    )
