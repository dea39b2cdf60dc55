"""`mimo-gguf worker`: lends this machine's memory and processors to a run elsewhere."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import Host, Port, Threads
from mimo_gguf.core.units import format_size


def command(
    host: Host = "127.0.0.1",
    port: Port = 50052,
    cpu: Annotated[bool, typer.Option("--cpu", help="Lend the CPU even if there is a GPU.")] = False,
    threads: Threads = None,
) -> None:
    """Lend this machine to a run elsewhere, until you press Ctrl-C.

    On the other side: mimo-gguf fit FILE --rpc HOST:PORT, mimo-gguf chat FILE --rpc HOST:PORT.
    """
    from mimo_gguf.hardware.devices import host_device
    from mimo_gguf.hardware.worker import LOOPBACK, check_worker, serve, worker_devices

    check_worker(host, port, threads or 0)
    devices = worker_devices(cpu_only=cpu)
    for device in devices:
        free_bytes = device.free_bytes if device.is_gpu else host_device().free_bytes  # ggml calls all RAM free
        ui.print_note(f"lending {device.name}: {device.description}, {format_size(free_bytes)} free")
    if host != LOOPBACK:
        ui.print_warning(f"anyone who reaches {host}:{port} can use and crash this process; there is no password")
    ui.print_note(f"listening on {host}:{port}")
    # The server is a loop in C that never looks at Python's signals: let Ctrl-C end the process itself.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    serve(host, port, devices=devices, n_threads=threads or 0)
