"""NVIDIA's cards by their driver, beside ggml's list: which cards there are, and which programs occupy them.

It needs `pip install nvidia-ml-py`. Without it, without a driver or without the right to ask, the answers are empty.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_gguf.core.units import format_size
from mimo_gguf.hardware.devices import Device


@dataclass(frozen=True, slots=True)
class OtherUse:
    """A program that occupies memory of a card; `n_bytes` is 0 if the driver does not report it (Windows)."""

    pid: int
    program: str
    n_bytes: int

    def __str__(self) -> str:
        return f"{self.program} ({self.pid})" + (f" {format_size(self.n_bytes)}" if self.n_bytes else "")


@dataclass(frozen=True, slots=True)
class NvidiaCard:
    """A card by its driver; `uses` are the other programs on it, the largest first."""

    name: str
    pci_id: str
    free_bytes: int
    total_bytes: int
    uses: tuple[OtherUse, ...]


def nvidia_cards() -> tuple[NvidiaCard, ...]:
    """NVIDIA's cards in this machine, even if the installed llama.cpp cannot use them."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return ()
    try:
        nvml.nvmlInit()
        try:
            return tuple(_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return ()


def nvidia_driver() -> str:
    """The version of NVIDIA's driver: asked of it, or as Linux shows it; empty if neither tells."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return _driver_by_kernel()
    try:
        nvml.nvmlInit()
        try:
            return _text(nvml.nvmlSystemGetDriverVersion())
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return _driver_by_kernel()


def _driver_by_kernel() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"Kernel Module\D*([\d.]+)", text)
    return found[1] if found else ""


def other_uses(device: Device, cards: Sequence[NvidiaCard]) -> tuple[OtherUse, ...]:
    """The programs beside this one that occupy memory of `device`."""
    return next((card.uses for card in cards if card.pci_id and card.pci_id == _plain(device.pci_id)), ())


def unused_cards(devices: Sequence[Device], cards: Sequence[NvidiaCard]) -> tuple[NvidiaCard, ...]:
    """The cards that are not among `devices` if no GPU is: llama.cpp was built without a backend for them."""
    known = {_plain(device.pci_id) for device in devices}
    return () if any(device.is_gpu for device in devices) else tuple(c for c in cards if c.pci_id not in known)


def _card(nvml: Any, index: int) -> NvidiaCard:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    sizes: dict[int, int] = {}
    for process in (
        *nvml.nvmlDeviceGetComputeRunningProcesses(handle),
        *nvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
    ):
        sizes[process.pid] = max(sizes.get(process.pid, 0), int(process.usedGpuMemory or 0))
    sizes.pop(os.getpid(), None)
    uses = (OtherUse(pid, _program(pid), n_bytes) for pid, n_bytes in sizes.items())
    return NvidiaCard(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        pci_id=_plain(_text(nvml.nvmlDeviceGetPciInfo(handle).busId)),
        free_bytes=int(memory.free),
        total_bytes=int(memory.total),
        uses=tuple(sorted(uses, key=lambda use: (-use.n_bytes, use.pid))),
    )


def _program(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "?"


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _plain(pci_id: str) -> str:
    """The id with a domain of four digits: `00000000:01:00.0` (NVML) and `0000:01:00.0` (ggml) become equal."""
    return pci_id.lower()[-12:]
