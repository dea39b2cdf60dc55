"""llama.cpp's own answer to what a run would occupy, to the byte, without allocating anything.

The figures come from `llama_get_memory_breakdown` on a `no_alloc` model: the bytes that a real load would ask of each
backend. A process of its own asks for them, so whatever goes wrong there is an error here, and nothing worse. If a
platform cannot answer, `memory.predict` gives the same figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from mimo_gguf.core.child_process import ChildFailed, ask_child
from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import Metadata, TensorInfo, string, uint32
from mimo_gguf.core.runnable import check_measurable
from mimo_gguf.fit.breakdown import LEAVE_OUT, AskedMemory
from mimo_gguf.hardware.devices import Device
from mimo_gguf.memory.parts import ContextBytes
from mimo_gguf.memory.run import RunSettings

_TIMEOUT_S: Final = 120


def ask_memory(
    path: str | Path, settings: RunSettings, devices: Sequence[Device] = (), *, allocate: bool = False
) -> tuple[AskedMemory, ...]:
    """The bytes that llama.cpp would allocate for this run: one entry per device in `devices`, then the host's.

    Args:
        allocate: whether to load the model in fact; the file must then hold its data.

    Raises:
        GgufError: the file is broken, or has numbers that no model can have.
        BackendError: llama.cpp refused the file or the settings, ended or hung on them, or cannot answer on this
            platform.
    """
    check_measurable(read_gguf(path))
    question = {
        "path": str(Path(path).absolute()),
        "settings": asdict(settings) | {"type_k": settings.type_k.name, "type_v": settings.type_v.name},
        "devices": [device.name for device in devices],
        "workers": [device.description for device in devices if device.backend == "RPC"],
        "allocate": allocate,
    }
    try:
        answer = ask_child("mimo_gguf.fit.breakdown", question, timeout_s=_TIMEOUT_S)
    except ChildFailed as error:
        raise BackendError(f"llama.cpp could not be asked: {error}", hint=LEAVE_OUT) from None
    if "error" in answer:
        raise BackendError(answer["error"], hint=answer["hint"])
    return tuple(
        AskedMemory(memory["weights"], ContextBytes(**memory["kv_cache"]), ContextBytes(**memory["compute"]))
        for memory in answer["devices"]
    )


@contextmanager
def header_only_file(metadata: Metadata, tensors: Sequence[TensorInfo]) -> Iterator[Path]:
    """A temporary GGUF of full size without data (a hole after the tensor table) and without a vocabulary.

    It is enough to ask llama.cpp about a file that does not exist yet.
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
