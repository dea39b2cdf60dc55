"""llama.cpp's own count of what a run occupies, read in this process.

`llama_get_memory_breakdown` is a C++ function that returns a std::map, so its nodes are walked here; the layouts of
libstdc++ and libc++ are fixed by their ABI. A library of another ABI could end the process, and so can an unexpected
file. `asked` therefore runs this module in a process of its own, as `main`.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-ext.h (llama_memory_breakdown)
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import BackendError, MimoGgufError
from mimo_gguf.core.kv_cache import parse_kv_type
from mimo_gguf.core.version import REINSTALL_LLAMA
from mimo_gguf.hardware.devices import Device, ggml_devices
from mimo_gguf.hardware.rpc import add_workers
from mimo_gguf.llama import api as llama_api
from mimo_gguf.llama.symbols import address_of
from mimo_gguf.memory.parts import NO_CONTEXT, ContextBytes
from mimo_gguf.memory.run import RunSettings

LEAVE_OUT: Final = "leave --asked out: the analytic plan needs no llama.cpp"
_SYMBOL: Final = "_Z26llama_get_memory_breakdownPK13llama_context"
_Amounts = tuple[int, int, int]  # bytes of weights, KV cache, compute buffers
_NOTHING: Final[_Amounts] = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class AskedMemory:
    """The bytes that llama.cpp would allocate on one device, in the words of `memory.parts`."""

    weights: int = 0
    kv_cache: ContextBytes = NO_CONTEXT
    compute: ContextBytes = NO_CONTEXT

    @property
    def n_bytes(self) -> int:
        return self.weights + self.kv_cache.n_bytes + self.compute.n_bytes


def read_memory(
    path: str | Path, settings: RunSettings, devices: Sequence[Device] = (), *, allocate: bool = False
) -> tuple[AskedMemory, ...]:
    """The answer of `asked.ask_memory`, worked out in this process.

    Raises:
        BackendError: llama.cpp refused the file or the settings, or cannot answer on this platform.
    """
    _check_platform()
    model_options = llama_api.ModelOptions(
        n_gpu_layers=settings.n_gpu_layers if devices else 0,
        devices=tuple(device.pointer for device in devices),
        tensor_split=settings.tensor_split,
        load_mtp=settings.mtp,
        use_mmap=False,
        no_alloc=not allocate,
    )
    second: dict[int, _Amounts] = {}
    with (
        llama_api.load_model(path, model_options) as model,
        llama_api.open_context(model, context_options(settings)) as target,
    ):
        first = _breakdown(target.pointer, devices)
        if settings.mtp and model.n_mtp:
            n_ubatch, n_outputs = settings.mtp_n_ubatch, settings.mtp_n_outputs_max
            with llama_api.open_mtp_context(target, n_ubatch=n_ubatch, n_outputs_max=n_outputs) as mtp:
                second = _breakdown(mtp.pointer, devices)
    return tuple(
        AskedMemory(
            weights=first.get(index, _NOTHING)[0],
            kv_cache=ContextBytes(first.get(index, _NOTHING)[1], second.get(index, _NOTHING)[1]),
            compute=ContextBytes(first.get(index, _NOTHING)[2], second.get(index, _NOTHING)[2]),
        )
        for index in range(len(devices) + 1)
    )


def context_options(settings: RunSettings) -> llama_api.ContextOptions:
    """The options of llama.cpp's target context for the planned settings."""
    return llama_api.ContextOptions(
        n_ctx=settings.n_ctx_asked,
        n_batch=settings.n_batch,
        n_ubatch=settings.n_ubatch,
        n_seq_max=settings.n_seq_max,
        kv_unified=settings.kv_unified,
        n_outputs_max=settings.n_outputs_max,
        type_k=int(settings.type_k),
        type_v=int(settings.type_v),
        flash_attn=settings.flash_attn,
    )


class _Map(ctypes.Structure):
    """Room for a std::map: 48 bytes in libstdc++, 24 in libc++."""

    _fields_ = [("words", ctypes.c_uint64 * 6)]


def _check_platform() -> None:
    if sys.platform not in ("linux", "darwin") or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise BackendError(
            "llama.cpp cannot be asked for its memory on this platform",
            hint=LEAVE_OUT,
        )


def _breakdown(context: int, devices: Sequence[Device]) -> dict[int, _Amounts]:
    """The bytes of (weights, KV cache, compute buffers) by device index; the host's is the last."""
    address = address_of([_SYMBOL], [llama_api.api()._lib])
    if address is None:
        raise BackendError("the installed llama.cpp has no llama_get_memory_breakdown", hint=REINSTALL_LLAMA)
    call = ctypes.CFUNCTYPE(_Map, ctypes.c_void_p)(address)
    words = call(context).words
    root, count = (words[2], words[5]) if sys.platform == "linux" else (words[1], words[2])
    entries = list(_walk(root, left=16 if sys.platform == "linux" else 0))
    if len(entries) != count:
        raise BackendError(
            "llama.cpp's memory breakdown has an unknown layout in this build",
            hint=LEAVE_OUT,
        )
    index_of = {device.pointer: index for index, device in enumerate(devices)}
    is_host = llama_api.ggml_function("ggml_backend_buft_is_host", ctypes.c_bool, ctypes.c_void_p)
    get_device = llama_api.ggml_function("ggml_backend_buft_get_device", ctypes.c_void_p, ctypes.c_void_p)
    sums: dict[int, _Amounts] = {}
    for buffer_type, *amounts in entries:
        index = len(devices) if is_host(buffer_type) else index_of.get(get_device(buffer_type) or 0, len(devices))
        before = sums.get(index, _NOTHING)
        sums[index] = (before[0] + amounts[0], before[1] + amounts[1], before[2] + amounts[2])
    return sums


def _walk(node: int, left: int) -> Iterator[tuple[int, int, int, int]]:
    """The values of a red-black tree in order. The right child is stored after the left, the value at byte 32."""
    if node:
        yield from _walk(_word(node + left), left)
        yield _word(node + 32), _word(node + 40), _word(node + 48), _word(node + 56)
        yield from _walk(_word(node + left + 8), left)


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


def main() -> None:
    """Reads one question as JSON on stdin, and writes the answer as one line of JSON on stdout."""
    question = json.loads(sys.stdin.read())
    try:
        answer: dict[str, Any] = {"devices": [asdict(memory) for memory in _answer(question)]}
    except MimoGgufError as error:
        answer = {"error": error.message, "hint": error.hint}
    sys.stdout.write(json.dumps(answer) + "\n")


def _answer(question: dict[str, Any]) -> tuple[AskedMemory, ...]:
    if question["workers"]:
        add_workers(question["workers"])
    by_name = {device.name: device for device in ggml_devices()} if question["devices"] else {}
    if missing := [name for name in question["devices"] if name not in by_name]:
        raise BackendError(f"{', '.join(missing)}: not there any more", hint="see which are: mimo-gguf doctor")
    given = question["settings"]
    kinds = {name: parse_kv_type(given[name]) for name in ("type_k", "type_v")}
    settings = RunSettings(**given | kinds | {"tensor_split": tuple(given["tensor_split"])})
    devices = [by_name[name] for name in question["devices"]]
    return read_memory(question["path"], settings, devices, allocate=question["allocate"])


if __name__ == "__main__":
    main()
