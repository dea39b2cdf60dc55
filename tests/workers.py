"""An RPC worker on loopback: a second device that every machine has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def running_worker(room_bytes: int = 0) -> Iterator[str]:
    """Endpoint of a worker process that lends the CPU.

    Args:
        room_bytes: of address space for what it is asked to hold (Linux); beyond that its allocations really fail,
            although it reports the machine's free memory. 0: no limit.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "from mimo_gguf.hardware.worker import serve, worker_devices\n"
        "devices = worker_devices(cpu_only=True)\n"
        + (_LIMIT.format(room_bytes=room_bytes) if room_bytes else "")
        + f"serve(port={port}, devices=devices, n_threads=1)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    try:
        _wait_for(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


_LIMIT = """
import psutil, resource
limit = psutil.Process().memory_info().vms + {room_bytes}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the worker ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the worker did not start")
