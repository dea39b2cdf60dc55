"""llama.cpp asked what a run would occupy: a model and its contexts made without allocating anything, to the byte.

The figures come from llama.cpp's own `llama_get_memory_breakdown` on a `no_alloc` model: what the real load would ask
of each backend, in a fraction of a second. It is a C++ function that returns a std::map, so its nodes are walked here;
the layouts of libstdc++ and libc++ are fixed by their ABI. On other platforms use `memory_model`, which agrees with it.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-ext.h (llama_memory_breakdown)
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import Metadata, TensorInfo, string, uint32
from mimo_gguf.hardware.devices import Device
from mimo_gguf.llama import api as llama_api
from mimo_gguf.memory.parts import NO_CONTEXT, ContextBytes
from mimo_gguf.memory.run import RunSettings

_SYMBOL: Final = "_Z26llama_get_memory_breakdownPK13llama_context"


@dataclass(frozen=True, slots=True)
class AskedMemory:
    """Bytes llama.cpp would allocate on one device; the words are those of `memory.parts`."""

    weights: int = 0
    kv_cache: ContextBytes = NO_CONTEXT
    compute: ContextBytes = NO_CONTEXT

    @property
    def n_bytes(self) -> int:
        return self.weights + self.kv_cache.n_bytes + self.compute.n_bytes


def ask_memory(
    path: str | Path, settings: RunSettings, devices: Sequence[Device] = (), *, allocate: bool = False
) -> tuple[AskedMemory, ...]:
    """What llama.cpp would allocate for this run: one entry per device in `devices`, then the host's.

    Args:
        allocate: load the model for good and report what was allocated (the file must hold its data).

    Raises:
        BackendError: llama.cpp refused the file or the settings, or this platform cannot be asked.
    """
    _require_walkable()
    model_options = llama_api.ModelOptions(
        n_gpu_layers=settings.n_gpu_layers if devices else 0,
        devices=tuple(device.pointer for device in devices),
        tensor_split=settings.tensor_split,
        load_mtp=settings.mtp,
        use_mmap=False,
        no_alloc=not allocate,
    )
    second: dict[int, tuple[int, int, int]] = {}
    with (
        llama_api.load_model(path, model_options) as model,
        llama_api.open_context(model, context_options(settings)) as target,
    ):
        first = _breakdown(target.pointer, devices)
        if settings.mtp and model.n_mtp:
            n_ubatch, n_outputs = settings.mtp_n_ubatch, settings.mtp_n_outputs_max
            with llama_api.open_mtp_context(target, n_ubatch=n_ubatch, n_outputs_max=n_outputs) as mtp:
                second = _breakdown(mtp.pointer, devices)
    nothing = (0, 0, 0)
    return tuple(
        AskedMemory(
            weights=first.get(index, nothing)[0],
            kv_cache=ContextBytes(first.get(index, nothing)[1], second.get(index, nothing)[1]),
            compute=ContextBytes(first.get(index, nothing)[2], second.get(index, nothing)[2]),
        )
        for index in range(len(devices) + 1)
    )


def context_options(settings: RunSettings) -> llama_api.ContextOptions:
    """The options that make llama.cpp's target context what the plan was made for."""
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


@contextmanager
def header_only_file(metadata: Metadata, tensors: Sequence[TensorInfo]) -> Iterator[Path]:
    """A GGUF of full size that holds no data (a hole after the tensor table) and no vocabulary; gone afterwards.

    Enough to ask llama.cpp about a file that does not exist yet.
    """
    architecture = str(metadata["general.architecture"].value)
    kept = {
        key: value
        for key, value in metadata.items()
        if key == "general.architecture" or key.startswith(f"{architecture}.")
    }
    rows = next(info.shape[0] for info in tensors if info.name == "token_embd.weight")
    kept[f"{architecture}.vocab_size"] = uint32(rows)
    kept["tokenizer.ggml.model"] = string("none")
    layout = lay_out(kept, tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header-only.gguf"
        with path.open("wb") as file:
            file.write(layout.header)
            file.truncate(layout.n_bytes)
        yield path


class _Map(ctypes.Structure):
    """Room for a std::map: 48 bytes in libstdc++, 24 in libc++."""

    _fields_ = [("words", ctypes.c_uint64 * 6)]


def _require_walkable() -> None:
    if sys.platform not in ("linux", "darwin") or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise BackendError(
            "llama.cpp cannot be asked for its memory on this platform",
            hint="leave --asked out: the analytic plan needs no llama.cpp",
        )


def _breakdown(context: int, devices: Sequence[Device]) -> dict[int, tuple[int, int, int]]:
    """Device index (host last) -> bytes of (weights, KV cache, compute buffers)."""
    function = getattr(llama_api.api()._lib, _SYMBOL, None)
    if function is None:
        raise BackendError(
            "the installed llama.cpp has no llama_get_memory_breakdown",
            hint="pip install --no-cache-dir --force-reinstall llama-cpp-python==0.3.36",
        )
    call = ctypes.CFUNCTYPE(_Map, ctypes.c_void_p)(ctypes.cast(function, ctypes.c_void_p).value or 0)
    words = call(context).words
    root, count = (words[2], words[5]) if sys.platform == "linux" else (words[1], words[2])
    entries = list(_walk(root, left=16 if sys.platform == "linux" else 0))
    if len(entries) != count:
        raise BackendError(
            "llama.cpp's memory breakdown has an unknown layout in this build",
            hint="leave --asked out: the analytic plan needs no llama.cpp",
        )
    index_of = {device.pointer: index for index, device in enumerate(devices)}
    is_host = llama_api.ggml_function("ggml_backend_buft_is_host", ctypes.c_bool, ctypes.c_void_p)
    get_device = llama_api.ggml_function("ggml_backend_buft_get_device", ctypes.c_void_p, ctypes.c_void_p)
    sums: dict[int, tuple[int, int, int]] = {}
    for buffer_type, *amounts in entries:
        index = len(devices) if is_host(buffer_type) else index_of.get(get_device(buffer_type) or 0, len(devices))
        before = sums.get(index, (0, 0, 0))
        sums[index] = (before[0] + amounts[0], before[1] + amounts[1], before[2] + amounts[2])
    return sums


def _walk(node: int, left: int) -> Iterator[tuple[int, int, int, int]]:
    """Values of a red-black tree in order. Left and right child lie side by side, the value at byte 32."""
    if node:
        yield from _walk(_word(node + left), left)
        yield _word(node + 32), _word(node + 40), _word(node + 48), _word(node + 56)
        yield from _walk(_word(node + left + 8), left)


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value
