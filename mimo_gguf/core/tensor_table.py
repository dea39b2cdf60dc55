"""The digest of a tensor table: which tensors a file has, and where, without their data."""

from __future__ import annotations

from collections.abc import Iterable

from mimo_gguf.core.digests import TABLE
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.model_source import TensorInfo


def digest_table(entries: Iterable[tuple[int, TensorInfo, int]]) -> str:
    """Computes the hex digest of a tensor table.

    Args:
        entries: (number of the part, tensor, offset in bytes within the part's tensor data), in the tables' order.
    """
    lines = (f"{part} {info.name} {info.shape} {info.ggml_type.name} {offset}\n" for part, info, offset in entries)
    return TABLE.hex("".join(lines).encode())


def digest_table_of(model: GgufFile) -> str:
    """Computes the hex digest of the tensor table of a file, or of all parts of a split one."""
    return digest_table(
        (number, tensor.info, tensor.offset - part.data_offset)
        for number, part in enumerate(model.parts)
        for tensor in part.tensors
    )
