"""A worker, which lends this machine's devices over RPC to llama.cpp on another one, or in a second process here.

llama.cpp's protocol has no authentication and no encryption, and its manual warns never to expose it. So the loopback
address is the default, and any other must be given.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/tools/rpc/README.md
"""

from __future__ import annotations

import ctypes
import socket
from typing import Final

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.hardware.devices import Device, ggml_devices
from mimo_gguf.llama.api import default_threads, ggml_function

DEFAULT_PORT: Final = 50052
LOOPBACK: Final = "127.0.0.1"
MOST_THREADS: Final = 512  # GGML_MAX_N_THREADS


def worker_devices(*, cpu_only: bool = False) -> tuple[Device, ...]:
    """The devices that a worker of this machine would lend: its GPUs, or the CPU if there are none (or `cpu_only`)."""
    devices = ggml_devices()
    gpus = tuple(device for device in devices if device.is_gpu and device.backend != "RPC")
    return gpus if gpus and not cpu_only else tuple(device for device in devices if not device.is_gpu)


def serve(
    host: str = LOOPBACK, port: int = DEFAULT_PORT, *, devices: tuple[Device, ...] | None = None, n_threads: int = 0
) -> None:
    """Lends `devices` (default: `worker_devices()`) until the process is stopped. llama.cpp reports on stdout.

    Raises:
        UsageError: the port, the address or the number of threads is not possible, or the port is in use.
        BackendError: this build of llama.cpp has no RPC, or the server could not start.
    """
    check_worker(host, port, n_threads)
    start = ggml_function(
        "ggml_backend_rpc_start_server",
        None,
        *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p),
    )
    lent = devices or worker_devices()
    pointers = (ctypes.c_void_p * len(lent))(*(device.pointer for device in lent))
    start(f"{host}:{port}".encode(), None, n_threads or default_threads(), len(lent), ctypes.addressof(pointers))
    raise BackendError(f"{host}:{port}: the worker stopped", hint="look at what llama.cpp wrote above")


def check_worker(host: str, port: int, n_threads: int = 0) -> None:
    """Raises UsageError for what `serve` cannot take: a port, address or number of threads, or a port that is taken."""
    if not 0 < port < 65536:
        raise UsageError(f"{port} is not a port", hint=f"for example --port {DEFAULT_PORT}")
    if not 0 <= n_threads <= MOST_THREADS:
        raise UsageError(f"{n_threads} threads", hint=f"at most {MOST_THREADS}; left out: one per core")
    if not host or ":" in host:  # llama.cpp splits HOST:PORT at the first colon
        raise UsageError(f"{host!r} is not an address to listen on", hint="a name or an IPv4 address: --host 127.0.0.1")
    _check_free(host, port)


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"{host}:{port}: {error.strerror or error}", hint="choose another --port") from None
