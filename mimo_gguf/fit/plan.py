"""The memory plan: the need of a run on each device, the free memory there, and ways out if it does not fit.

The needs are llama.cpp's own (`memory.predict`), and those that it does not count: the driver, the program itself and a
margin. On a machine without a GPU the plan is about RAM. Weights on the host are a mapped file. The system could drop
their pages, but every token reads all of them, so they count in full; the same bytes in the page cache count as free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.core.units import format_size
from mimo_gguf.hardware.devices import Device
from mimo_gguf.memory.parts import DeviceMemory
from mimo_gguf.memory.run import RunSettings


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """One device of the plan, with the memory that the run needs there, part by part."""

    device: Device
    memory: DeviceMemory

    @property
    def needed_bytes(self) -> int:
        return self.memory.n_bytes

    @property
    def spare_bytes(self) -> int:
        """The bytes that stay free; if below zero, the bytes that are missing, or by which the cache is too large."""
        spare = self.free_bytes - self.needed_bytes
        if not self.is_cache_too_large:
            return spare
        over = 1 - self.device.traits.tensor_bytes / self.memory.cache_tensor
        return min(spare, -math.ceil(over * self.memory.kv_cache.n_bytes))

    @property
    def is_cache_too_large(self) -> bool:
        """Whether the cache of one block is more than the device computes with; llama.cpp would end the process."""
        return self.memory.cache_tensor > self.device.traits.tensor_bytes

    @property
    def free_bytes(self) -> int:
        return self.device.free_bytes

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.free_bytes and not self.is_cache_too_large

    def shortage(self) -> str:
        """The reason why the run does not fit, as the end of a sentence."""
        if self.is_cache_too_large and self.needed_bytes <= self.free_bytes:
            cache, most = format_size(self.memory.cache_tensor), format_size(self.device.traits.tensor_bytes)
            return f"has a cache of {cache} in each block, and {self.device.name} computes with {most} at most"
        needed, free = format_size(self.needed_bytes), format_size(self.free_bytes)
        return f"needs {needed} on {self.device.name}, {free} are free"


@dataclass(frozen=True, slots=True)
class WayOut:
    """A change that makes the run fit, checked with the same arithmetic.

    Attributes:
        text: what changes, for people.
        options: command line options that make the change; empty if another file alone makes it.
        needed_bytes: need of the device that was too small, after the change; 0 if the device is left out.
    """

    text: str
    options: tuple[str, ...]
    settings: RunSettings
    needed_bytes: int


@dataclass(frozen=True)
class FitPlan:
    """The plan of a run.

    Attributes:
        settings: those of the run, with `n_gpu_layers` chosen.
        devices: the need on each device; the host is the last.
        pinned_layers: whether the user chose `n_gpu_layers`.
        smaller: (file type, sizes) to offer if it does not fit, largest first; None means `ways_out.smaller_types`.
        left_out: GPUs of the machine that have too little free memory for any layer.
    """

    model: ModelSizes
    settings: RunSettings
    devices: tuple[DeviceFit, ...]
    pinned_layers: bool = False
    file_type: str = ""
    smaller: tuple[tuple[str, ModelSizes], ...] | None = None
    left_out: tuple[Device, ...] = ()

    @property
    def fits(self) -> bool:
        return all(device.fits for device in self.devices)

    @property
    def fits_on_gpus(self) -> bool:
        return all(device.fits for device in self.devices[:-1])

    @property
    def needed_bytes(self) -> dict[str, int]:
        """The bytes that each device needs, by its name."""
        return {fit.device.name: fit.needed_bytes for fit in self.devices}

    @property
    def free_bytes(self) -> dict[str, int]:
        """The free bytes of each device, by its name."""
        return {fit.device.name: fit.free_bytes for fit in self.devices}

    @property
    def tightest(self) -> DeviceFit:
        """The device with the fewest spare bytes, or the most missing ones."""
        return min(self.devices, key=lambda fit: fit.spare_bytes)

    @property
    def n_layers(self) -> int:
        """The number of layers that could be on a GPU: the blocks and the output layer."""
        return self.model.geometry.block_count + 1

    @property
    def runs_mtp(self) -> bool:
        return self.settings.mtp and self.model.has_mtp

    def summary(self) -> tuple[str, str]:
        """The plan in two lines: the settings, and the need and the free memory of each device."""
        s = self.settings
        kv = s.type_k.name.lower() if s.type_k is s.type_v else f"{s.type_k.name}/{s.type_v.name}".lower()
        mtp = "on" if self.runs_mtp else "off" if self.model.has_mtp else "not in this file"
        gpus = len(self.devices) - 1
        layers = (
            f"{s.n_gpu_layers} of {self.n_layers} layers on the GPU{'s' * (gpus > 1)}" if gpus else "all on the CPU"
        )
        if gpus > 1:
            layers += f" ({' + '.join(str(int(count)) for count in s.tensor_split)})"
        context = f"context {s.n_ctx}" if s.n_seq_max == 1 else f"{s.n_seq_max} contexts of {s.n_ctx_seq}"
        first = f"{layers}, {context}, KV cache {kv}, MTP {mtp}"
        if s.parked_bytes:
            first += f", {format_size(s.parked_bytes)} for parked conversations"
        second = ", ".join(
            f"{fit.device.name}: {format_size(fit.needed_bytes)} of {format_size(fit.free_bytes)} free"
            for fit in self.devices
        )
        return first, second + "".join(f", {text}" for text in self.notes())

    def notes(self) -> tuple[str, ...]:
        """The GPUs that the plan leaves out, one line each."""
        return tuple(f"{gpu.name} left out: only {format_size(gpu.free_bytes)} free" for gpu in self.left_out)
