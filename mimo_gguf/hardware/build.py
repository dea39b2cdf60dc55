"""The installed build of llama.cpp: its backends, the devices that it sees, and why it sees no GPU.

Loading it may fail, and may end the process. So `look_at_build` asks a process of its own, which runs this module as
`main`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.core.child_process import ChildFailed, ask_child
from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.version import REINSTALL_LLAMA
from mimo_gguf.hardware.devices import ggml_devices
from mimo_gguf.hardware.nvml import nvidia_cards
from mimo_gguf.llama.api import ggml_function
from mimo_gguf.llama.log import LOG

_TIMEOUT_S: Final = 60
_NOT_FOR_GPUS: Final = frozenset({"CPU", "RPC", "BLAS", "Accelerate"})
_WARN: Final = 3  # GGML_LOG_LEVEL_WARN
_PCI_VENDORS: Final = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_BUILD_LINES: Final = {"NVIDIA": "CUDA", "AMD": "Vulkan or ROCm", "Intel": "Vulkan"}


@dataclass(frozen=True, slots=True)
class SeenDevice:
    """A device as ggml lists it."""

    name: str
    description: str
    kind: str
    backend: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Build:
    """The installed build of llama.cpp, by its own account.

    Attributes:
        problem, hint: why it cannot be loaded, and what helps; both are empty if it can.
        ggml_version: ggml's version and commit.
        backends: the backends that are compiled in, by ggml's names.
        said: the warnings and errors of the backends while they started.
    """

    problem: str = ""
    hint: str = ""
    ggml_version: str = ""
    backends: tuple[str, ...] = ()
    devices: tuple[SeenDevice, ...] = ()
    said: tuple[str, ...] = ()

    @property
    def gpu_backends(self) -> tuple[str, ...]:
        return tuple(name for name in self.backends if name not in _NOT_FOR_GPUS)

    @property
    def gpus(self) -> tuple[SeenDevice, ...]:
        return tuple(device for device in self.devices if device.kind != "cpu" and device.backend != "RPC")


def look_at_build() -> Build:
    """Describes the installed llama.cpp, loaded in another process; if that ends or hangs, `problem` says so."""
    try:
        found = ask_child("mimo_gguf.hardware.build", None, timeout_s=_TIMEOUT_S)
    except ChildFailed as error:
        return Build(problem=f"llama.cpp ends or hangs when it is loaded: {error}", hint=REINSTALL_LLAMA)
    devices = tuple(SeenDevice(**device) for device in found.pop("devices"))
    return Build(**found | {"backends": tuple(found["backends"]), "said": tuple(found["said"]), "devices": devices})


def read_build() -> Build:
    """Describes the installed llama.cpp, which is loaded in this process."""
    try:
        count = ggml_function("ggml_backend_reg_count", ctypes.c_size_t)()
    except BackendError as error:
        return Build(problem=error.message, hint=error.hint or "")
    get = ggml_function("ggml_backend_reg_get", ctypes.c_void_p, ctypes.c_size_t)
    name = ggml_function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    devices = tuple(
        SeenDevice(d.name, d.description, d.kind, d.backend, d.free_bytes, d.total_bytes) for d in ggml_devices()
    )
    return Build(
        ggml_version=f"{_text('ggml_version')} ({_text('ggml_commit')})",
        backends=tuple(name(get(index)).decode() for index in range(count)),
        devices=devices,
        said=tuple(line.strip() for line in LOG.lines(level=_WARN) if line.strip()),
    )


def why_no_gpu(build: Build, adapters: Sequence[str]) -> str:
    """The reason why no GPU is used, in words; empty if one is.

    Args:
        adapters: the graphics cards of this machine, from `graphics_adapters`.
    """
    if build.problem or build.gpus:
        return ""
    here = ", ".join(adapters)
    if build.gpu_backends:
        said = f" ({build.said[0]})" if build.said else ""
        found = f"{here} is in this machine" if here else "no graphics card was found in this machine"
        return f"built with {', '.join(build.gpu_backends)}, but its driver shows no device{said}; {found}"
    if not here:
        return "this build has no backend for GPUs, and no graphics card was found in this machine"
    vendor = next((vendor for vendor in _BUILD_LINES if vendor in here), "NVIDIA")
    return (
        f"{here} is in this machine, but the installed llama.cpp was built without a backend for it: docs/install.md "
        f"has the line for {_BUILD_LINES[vendor]}"
    )


def graphics_adapters(root: Path = Path("/")) -> tuple[str, ...]:
    """The graphics cards of this machine by its drivers and its kernel, each once, whether llama.cpp sees them or not.

    NVIDIA's cards have names; of other cards, and of one without its driver, only the vendor is known.
    """
    named = [card.name if "NVIDIA" in card.name else f"NVIDIA {card.name}" for card in nvidia_cards()]
    for file in sorted(root.glob("proc/driver/nvidia/gpus/*/information")) if not named else ():
        models = (line.partition(":")[2].strip() for line in _lines(file) if line.startswith("Model:"))
        named += [model if "NVIDIA" in model else f"NVIDIA {model}" for model in models]
    vendors = [
        _PCI_VENDORS[vendor]
        for device in sorted(root.glob("sys/bus/pci/devices/*"))
        if (_lines(device / "class") or [""])[0].startswith("0x03")
        and (vendor := (_lines(device / "vendor") or [""])[0].strip()) in _PCI_VENDORS
    ]
    others = [f"a graphics card of {vendor}" for vendor in vendors if vendor != "NVIDIA" or not named]
    return tuple(dict.fromkeys([*named, *others]))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _text(name: str) -> str:
    try:
        said: bytes = ggml_function(name, ctypes.c_char_p)()
    except BackendError:
        return "?"
    return said.decode(errors="replace")


def main() -> None:
    """Writes the result of `read_build` as one line of JSON on stdout."""
    sys.stdout.write(json.dumps(asdict(read_build())) + "\n")


if __name__ == "__main__":
    main()
