"""Writing GGUF headers: bytes and data offsets for a given metadata and tensor list, through the gguf library."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGUFValueType, GGUFWriter

from mimo_gguf.core.model_source import Metadata, TensorInfo


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """Where everything of a GGUF file lies: header bytes (padded to the data), first byte of each tensor, file size."""

    header: bytes
    offsets: tuple[int, ...]
    n_bytes: int


def lay_out(metadata: Metadata, tensors: Sequence[TensorInfo], alignment: int = GGUF_DEFAULT_ALIGNMENT) -> GgufLayout:
    """The file that holds `tensors` in this order.

    The data of the last tensor is padded too, as llama.cpp's own writers do. Metadata must hold general.architecture;
    an empty array cannot be expressed and is left out.
    """
    header = _header_bytes(metadata, tensors, alignment)
    header += bytes(-len(header) % alignment)
    offsets = []
    at = len(header)
    for info in tensors:
        offsets.append(at)
        at += -(-info.n_bytes // alignment) * alignment
    return GgufLayout(header, tuple(offsets), at)


def _header_bytes(metadata: Metadata, tensors: Sequence[TensorInfo], alignment: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = GGUFWriter(None, str(metadata["general.architecture"].value), use_temp_file=False)
        writer.data_alignment = alignment
        for key, entry in metadata.items():
            if entry.value_type is GGUFValueType.ARRAY and len(entry.value) == 0:
                continue
            if key != "general.architecture":  # the writer has put it first
                writer.add_key_value(key, entry.value, entry.value_type, entry.item_type)
        for info in tensors:
            # Any dtype but uint8: the writer would take uint8 for a shape in bytes.
            writer.add_tensor_info(info.name, info.shape, np.dtype(np.float32), info.n_bytes, info.ggml_type)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()
