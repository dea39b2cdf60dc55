"""The devices of this machine and their memory: ggml's own list, and the host's RAM.

ggml lists the devices that the installed build of llama-cpp-python can drive (CUDA, ROCm, Vulkan, Metal, SYCL, RPC
workers). A machine without any is normal: the list then has the host alone. `nvml` knows who else uses NVIDIA's cards.
"""

from __future__ import annotations

import ctypes
import socket
import sys
from dataclasses import dataclass
from typing import Final

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.core.units import MIB
from mimo_gguf.hardware.control_groups import memory_limits
from mimo_gguf.hardware.device_traits import cpu_traits, read_traits
from mimo_gguf.llama.api import ggml_function
from mimo_gguf.memory.allocator import CPU_TRAITS, DeviceTraits

CPU: Final = "cpu"
GPU: Final = "gpu"
IGPU: Final = "igpu"
_KINDS: Final = {0: CPU, 1: GPU, 2: IGPU}  # ggml_backend_dev_type; accelerators of the CPU have no memory of their own
# The memory of a driver and its libraries (context, kernels, cuBLAS) once a program uses the card: estimated.
CONTEXT_OVERHEAD: Final = {"CUDA": 450 * MIB, "ROCm": 450 * MIB, "Vulkan": 200 * MIB, "SYCL": 300 * MIB}


@dataclass(frozen=True, slots=True)
class Device:
    """A place that can hold a model.

    Attributes:
        name: ggml's name (CUDA0, RPC0, CPU).
        kind: `gpu`, `igpu` (shares the host's memory) or `cpu`.
        backend: ggml's registry name (CUDA, Vulkan, MTL, RPC, CPU).
        free_bytes, total_bytes: as the driver reported them; both are 0 if it did not.
        pointer: ggml_backend_dev_t, which names the device when a model is loaded; 0 for an imagined device.
    """

    name: str
    description: str
    kind: str
    backend: str
    free_bytes: int
    total_bytes: int
    traits: DeviceTraits = CPU_TRAITS
    pointer: int = 0
    pci_id: str = ""

    @property
    def is_gpu(self) -> bool:
        return self.kind != CPU

    @property
    def shares_host_memory(self) -> bool:
        """Whether it uses the host's RAM, as integrated GPUs, Apple's and a worker on this machine do."""
        is_local_worker = self.backend == "RPC" and self.description.startswith(("127.", "localhost", "[::1]"))
        return self.kind == IGPU or self.backend == "MTL" or is_local_worker


def list_devices() -> tuple[Device, ...]:
    """The GPUs in llama.cpp's order, then the host; the host alone if llama.cpp cannot be loaded.

    Like llama.cpp, the list leaves integrated GPUs out if there is a dedicated one.
    """
    try:
        found = [device for device in ggml_devices() if device.is_gpu]
    except BackendError:
        found = []
    dedicated = [device for device in found if device.kind == GPU]
    return (*(dedicated or found[:1]), host_device())


def loading_problem() -> BackendError | None:
    """The reason why llama.cpp cannot be loaded, so that `list_devices` has the host alone; None if it can."""
    try:
        ggml_devices()
    except BackendError as error:
        return error
    return None


def ggml_devices() -> list[Device]:
    """The devices with memory of their own that ggml can compute on, and the CPU.

    Raises:
        BackendError: llama.cpp cannot be loaded.
    """
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    count = ggml_function("ggml_backend_dev_count", size)()
    get = ggml_function("ggml_backend_dev_get", pointer, size)
    devices = [_read_device(device) for device in map(get, range(count)) if _answers(device)]
    return [device for device in devices if device is not None]


def _backend_name(device: int) -> str:
    """The name of the device's backend: CUDA, Vulkan, CPU, RPC, ..."""
    registry = ggml_function("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)(device)
    name: bytes = ggml_function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)(registry)
    return name.decode()


def _answers(device: int) -> bool:
    """Whether the device can be asked: llama.cpp ends the process if a worker does not answer any more."""
    if _backend_name(device) != "RPC":
        return True
    endpoint: bytes = ggml_function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)(device)
    host, _, port = endpoint.decode().rpartition(":")
    try:
        return _is_connected(host, int(port)) or _can_connect(host, int(port))
    except (OSError, ValueError):
        return False


def _is_connected(host: str, port: int) -> bool:
    """Whether llama.cpp has a connection to the worker, as it does while a model is there.

    Then no other may be tried: a worker serves one at a time and lets two wait, and further ones fail after seconds.
    """
    import psutil

    addresses = {info[4][:2] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    try:
        connections = psutil.Process().net_connections("tcp")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_ESTABLISHED and tuple(c.raddr) in addresses for c in connections)


def _can_connect(host: str, port: int) -> bool:
    socket.create_connection((host, port), timeout=5).close()
    return True


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_bool) for name in ("async_", "host_buffer", "from_host_ptr", "events", "mmap")]


class _Properties(ctypes.Structure):
    """ggml_backend_dev_props (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/include/ggml-backend.h)."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("capabilities", _Capabilities),
    ]


def _read_device(pointer: int) -> Device | None:
    properties = _Properties()
    ggml_function("ggml_backend_dev_get_props", None, ctypes.c_void_p, ctypes.c_void_p)(
        pointer, ctypes.addressof(properties)
    )
    kind = _KINDS.get(properties.type)
    if kind is None:
        return None
    capabilities = properties.capabilities
    backend = _backend_name(pointer)
    return Device(
        name=properties.name.decode(),
        description=(properties.description or b"").decode(errors="replace"),
        kind=kind,
        backend=backend,
        free_bytes=properties.memory_free,
        total_bytes=properties.memory_total,
        traits=read_traits(pointer, backend, is_asynchronous=capabilities.async_ and capabilities.events),
        pointer=pointer,
        pci_id=(properties.device_id or b"").decode(errors="replace"),
    )


def host_device() -> Device:
    """The host, with the RAM that is free without swapping and within a control group's limit.

    The page cache counts as free.
    """
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    for limit, used in memory_limits():
        total, free = min(total, limit), min(free, max(limit - used, 0))
    return Device("CPU", "host memory", CPU, "CPU", min(free, _address_space_left()), total, cpu_traits())


def _address_space_left() -> int:
    """The bytes that `ulimit -v` leaves this process; without such a limit, sys.maxsize."""
    import psutil

    if sys.platform == "win32":
        return sys.maxsize
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(limit - int(psutil.Process().memory_info().vms), 0)


def imagined_gpu(vram_bytes: int, name: str = "GPU", description: str = "") -> Device:
    """A CUDA-like card with `vram_bytes`, to plan for one that is not here. The driver's part does not count as free.

    Raises:
        UsageError: the size is absurd.
    """
    if not 64 * MIB <= vram_bytes <= 1 << 42:
        raise UsageError(f"no graphics card has {vram_bytes} bytes", hint="for example --vram 8GiB")
    return Device(
        name,
        description,
        GPU,
        "CUDA",
        vram_bytes - CONTEXT_OVERHEAD["CUDA"],
        vram_bytes,
        DeviceTraits(128, 32, True, True),
    )
