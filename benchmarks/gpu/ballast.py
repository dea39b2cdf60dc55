"""Takes memory of the first GPU and holds it until it is killed: `python -m benchmarks.gpu.ballast BYTES [leave]`.

With `leave`, it takes all but so many bytes. It asks ggml for the memory, as a model does, so any backend will do.
Buffers are at most 256 MiB.
"""

from __future__ import annotations

import ctypes
import sys

from mimo_gguf.core.units import MIB
from mimo_gguf.hardware.devices import list_devices
from mimo_gguf.llama.api import ggml_function

_PIECE = 256 * MIB


def hold(n_bytes: int, *, leave: bool = False) -> list[int]:
    """Takes the memory and returns ggml's buffers; the process's end gives it back.

    Args:
        leave: take all but `n_bytes`. What the driver itself takes for this process is gone before that is measured.
    """
    device = list_devices()[0]
    if not device.pointer:
        raise SystemExit("no GPU is there")
    if leave:
        first = hold(MIB)
        return first + hold(max(list_devices()[0].free_bytes - n_bytes, 0))
    pointer = ctypes.c_void_p
    buffer_type = ggml_function("ggml_backend_dev_buffer_type", pointer, pointer)(device.pointer)
    allocate = ggml_function("ggml_backend_buft_alloc_buffer", pointer, pointer, ctypes.c_size_t)
    clear = ggml_function("ggml_backend_buffer_clear", None, pointer, ctypes.c_uint8)
    buffers = []
    while n_bytes > 0:
        buffer = allocate(buffer_type, min(n_bytes, _PIECE))
        if not buffer:
            raise SystemExit(f"{n_bytes} bytes of {device.name} are missing")
        clear(buffer, 0)
        buffers.append(buffer)
        n_bytes -= _PIECE
    return buffers


def main() -> None:
    held = hold(int(sys.argv[1]), leave="leave" in sys.argv)
    print("held", flush=True)
    sys.stdin.read()
    del held


if __name__ == "__main__":
    main()
