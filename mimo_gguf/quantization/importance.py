"""Importance matrices: how strongly each input column of a matrix is used, as llama-imatrix measures it.

Both of its formats: GGUF (`<tensor>.in_sum2` with `<tensor>.counts`) and the older binary .dat. The division is done
in float32 as llama-quantize does it, so that results are identical.
Source: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/common/imatrix-loader.cpp and tools/quantize/quantize.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.documents import MEGABYTE, DocumentKind
from mimo_gguf.core.errors import GgufError, UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import GgufPart, read_part
from mimo_gguf.core.model_source import Metadata, string, uint32

_SUMS: Final = ".in_sum2"
_COUNTS: Final = ".counts"
_HINT: Final = "make it again with llama-imatrix"
_DOCUMENT: Final = DocumentKind(GgufError, _HINT, most_bytes=1000 * MEGABYTE)  # a model of 7 B has 5 MB of it


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """Importance weights by tensor name, float32 of one value per column.

    Attributes:
        dataset: text it was measured on, where the file says.
        n_chunks: how much of it; 0 where the file does not say.
    """

    path: Path
    columns: Mapping[str, NDArray[np.float32]] = field(repr=False)
    dataset: str
    n_chunks: int

    def metadata(self) -> Metadata:
        """The keys llama-quantize records in a file made with this matrix."""
        entries = {
            "quantize.imatrix.file": string(_shortened(str(self.path))),
            "quantize.imatrix.entries_count": uint32(len(self.columns)),
        }
        if self.dataset:
            entries["quantize.imatrix.dataset"] = string(_shortened(self.dataset))
        if self.n_chunks > 0:
            entries["quantize.imatrix.chunks_count"] = uint32(self.n_chunks)
        return entries


def read_importance(path: Path) -> ImportanceMatrix:
    """The importance matrix in a file of either format.

    Raises:
        GgufError: no such file, neither format, truncated, or values that are not finite.
    """
    data = _DOCUMENT.read_bytes(path)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        if data[:4] == b"GGUF":
            columns, dataset, n_chunks = _from_gguf(read_part(path), data)
        else:
            columns, dataset, n_chunks = _from_dat(path, data)
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise GgufError(f"{path}: importance of {name} is not finite", hint=_HINT)
    return ImportanceMatrix(path, columns, dataset, n_chunks)


def check_columns(importance: ImportanceMatrix, tensor_name: str, n_columns: int) -> NDArray[np.float32] | None:
    """This tensor's importance weights, or None where the matrix has none.

    Raises:
        UsageError: there are weights for it, but of another width.
    """
    values = importance.columns.get(tensor_name)
    if values is not None and values.size != n_columns:
        raise UsageError(
            f"{importance.path}: {tensor_name} has {values.size} importance values, its rows have {n_columns} weights",
            hint="the importance matrix is of another model",
        )
    return values


def _shortened(text: str) -> str:
    """At most 127 bytes: what llama.cpp's metadata overrides can hold."""
    return text.encode(errors="replace")[:127].decode(errors="ignore")


def _from_gguf(part: GgufPart, data: bytes) -> tuple[dict[str, NDArray[np.float32]], str, int]:
    arrays: dict[str, NDArray[np.float32]] = {}
    for tensor in part.tensors:
        if tensor.info.name.endswith((_SUMS, _COUNTS)):
            if tensor.info.ggml_type is not GgmlType.F32:
                raise GgufError(f"{part.path}: {tensor.info.name} is {tensor.info.ggml_type.name}, not F32", hint=_HINT)
            arrays[tensor.info.name] = np.frombuffer(data, np.float32, tensor.info.n_elements, tensor.offset)
    missing = [key for key in ("datasets", "chunk_count", "chunk_size") if f"imatrix.{key}" not in part.metadata]
    if missing or not arrays:
        raise GgufError(f"{part.path}: not an importance matrix: no imatrix.{(missing or ['tensors'])[0]}", hint=_HINT)
    names = sorted({name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in arrays})
    columns = {name: _normalised(part.path, name, arrays) for name in names}
    datasets = part.metadata["imatrix.datasets"].value
    return columns, str(datasets[0]) if datasets else "", int(part.metadata["imatrix.chunk_count"].value)


def _normalised(path: Path, name: str, arrays: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    sums, counts = arrays.get(name + _SUMS), arrays.get(name + _COUNTS)
    if sums is None or counts is None or sums.size % counts.size:
        raise GgufError(f"{path}: sums and counts of {name} do not belong together", hint=_HINT)
    per_matrix = sums.reshape(counts.size, -1)
    whole = np.floor(np.abs(counts) + np.float32(0.5)) * np.sign(counts)  # lround: halves away from zero
    return np.where(
        whole[:, None] > 0, per_matrix / np.where(whole > 0, whole, 1).astype(np.float32)[:, None], np.float32(1)
    ).reshape(-1)


def _from_dat(path: Path, data: bytes) -> tuple[dict[str, NDArray[np.float32]], str, int]:
    at = 0

    def take(n_bytes: int) -> bytes:
        nonlocal at
        if n_bytes < 0 or at + n_bytes > len(data):
            raise GgufError(f"{path}: not an importance matrix, or a truncated one (byte {at})", hint=_HINT)
        at += n_bytes
        return data[at - n_bytes : at]

    def number() -> int:
        return int(struct.unpack("<i", take(4))[0])

    n_entries = number()
    if n_entries < 1:
        raise GgufError(f"{path}: not an importance matrix", hint=_HINT)
    columns: dict[str, NDArray[np.float32]] = {}
    for _ in range(n_entries):
        name = take(number()).decode(errors="replace")
        n_calls = number()
        values = np.frombuffer(take(4 * number()), np.float32)
        columns[name] = values / np.float32(n_calls) if n_calls > 0 else values
    if at == len(data):
        return columns, "", 0
    n_chunks = number()
    return columns, take(number()).decode(errors="replace") if at < len(data) else "", n_chunks
