"""The GGUF form of importance matrices: for each matrix the sums of squares of its inputs, and the number of rows.

`<matrix>.in_sum2` has shape (n_matrices, n_columns), `<matrix>.counts` has shape (n_matrices, 1), both F32; a dense
matrix is one. Importance is their quotient. Source, with the keys `imatrix.*`:
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/tools/imatrix/imatrix.cpp (save_imatrix)
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from mimo_gguf.core.documents import MEGABYTE, DocumentKind
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import GgufPart, read_part
from mimo_gguf.core.gguf_header import lay_out
from mimo_gguf.core.model_source import Metadata, TensorInfo, array, string, uint32
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.core.paths import command_word

Sums = NDArray[np.floating[Any]]  # float32 or float64

HINT: Final = "make it again: mimo-gguf imatrix SRC -f TEXT -o FILE"
DOCUMENT: Final = DocumentKind(GgufError, HINT, most_bytes=1000 * MEGABYTE)  # a model of 7 B has 5 MB of it
_SUMS: Final = ".in_sum2"
_COUNTS: Final = ".counts"
_KEYS: Final = ("datasets", "chunk_count", "chunk_size")
_TYPES: Final[dict[GgmlType, np.dtype[Any]]] = {GgmlType.F32: np.dtype("<f4"), GgmlType.F64: np.dtype("<f8")}


@dataclass(frozen=True, slots=True)
class ImportanceSums:
    """What an importance matrix was computed from.

    Attributes:
        sums: matrix -> sums of squares of its inputs, shape (n_matrices, n_columns).
        counts: matrix -> number of rows that were summed, shape (n_matrices,).
        datasets: names of the texts.
        n_chunks: number of chunks of text.
        chunk_size: tokens of a chunk.
        metadata: all keys of the file.
    """

    sums: Mapping[str, Sums] = field(repr=False)
    counts: Mapping[str, Sums] = field(repr=False)
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int
    metadata: Metadata = field(default_factory=dict, repr=False)


def read_importance_sums(path: Path, *, ggml_type: GgmlType = GgmlType.F32) -> ImportanceSums:
    """Reads a file of this form.

    Args:
        ggml_type: the type of its numbers, F32 or F64.

    Raises:
        GgufError: no such file, another form, truncated, or sums and counts that do not belong together.
    """
    return parse_importance_sums(path, DOCUMENT.read_bytes(path), ggml_type=ggml_type)


def parse_importance_sums(path: Path, data: bytes, *, ggml_type: GgmlType = GgmlType.F32) -> ImportanceSums:
    """The sums in `data`, the content of the file at `path`, whose header is read again.

    Raises:
        GgufError: as `read_importance_sums`.
    """
    if _is_dat(data):
        raise GgufError(
            f"{path}: is in llama-imatrix's older form, which has no number of rows",
            hint=f"llama-imatrix -m none --in-file {command_word(path)} -o NEW.gguf makes a GGUF of it",
        )
    part = read_part(path)
    arrays = _arrays(part, data, ggml_type)
    missing = [key for key in _KEYS if f"imatrix.{key}" not in part.metadata]
    if missing or not arrays:
        raise GgufError(f"{path}: not an importance matrix: no imatrix.{(missing or ['tensors'])[0]}", hint=HINT)
    names = sorted({name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in arrays})
    sums, counts = {}, {}
    for name in names:
        of_name, count = arrays.get(name + _SUMS), arrays.get(name + _COUNTS)
        if of_name is None or count is None or of_name.size % count.size:
            raise GgufError(f"{path}: sums and counts of {name} do not belong together", hint=HINT)
        sums[name], counts[name] = of_name.reshape(count.size, -1), count
    return ImportanceSums(
        sums, counts, _datasets(part), _number(part, "chunk_count"), _number(part, "chunk_size"), part.metadata
    )


def _is_dat(data: bytes) -> bool:
    """Whether a file begins as llama-imatrix's older ones: the number of entries, and the first matrix's name."""
    n_entries, length = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    return 0 < n_entries < 1 << 20 and 0 < length < 256 and data[8 : 8 + length].endswith(b".weight")


def _arrays(part: GgufPart, data: bytes, ggml_type: GgmlType) -> dict[str, Sums]:
    arrays: dict[str, Sums] = {}
    for tensor in part.tensors:
        name, info = tensor.info.name, tensor.info
        if not name.endswith((_SUMS, _COUNTS)):
            continue
        if info.ggml_type is not ggml_type:
            raise GgufError(f"{part.path}: {name} is {info.ggml_type.name}, not {ggml_type.name}", hint=HINT)
        if tensor.offset + info.n_bytes > len(data):
            raise GgufError(f"{part.path}: changed while it was read", hint="run again")
        arrays[name] = np.frombuffer(data, _TYPES[ggml_type], info.n_elements, tensor.offset)
    return arrays


def _datasets(part: GgufPart) -> tuple[str, ...]:
    datasets = part.metadata["imatrix.datasets"].value
    is_texts = isinstance(datasets, list) and all(isinstance(text, str) for text in datasets)
    if not is_texts:
        raise GgufError(f"{part.path}: imatrix.datasets is not a list of texts", hint=HINT)
    return tuple(datasets)


def _number(part: GgufPart, key: str) -> int:
    number = part.metadata[f"imatrix.{key}"].value
    if type(number) is not int or not 0 <= number < 1 << 32:
        raise GgufError(f"{part.path}: imatrix.{key} is {reprlib.repr(number)}, not a count", hint=HINT)
    return number


def write_importance_sums(path: Path, importance: ImportanceSums, *, ggml_type: GgmlType = GgmlType.F32) -> None:
    """Writes a file of this form, with the matrices in the order of their names; it replaces what is at `path`.

    Args:
        importance: `metadata` holds further keys, which llama.cpp's programs do not read.
        ggml_type: the type of its numbers, F32 or F64.

    Raises:
        OutputError: it cannot be written.
    """
    metadata = {
        **importance.metadata,
        "general.type": string("imatrix"),
        "imatrix.datasets": array(GGUFValueType.STRING, importance.datasets or ("",)),
        "imatrix.chunk_count": uint32(importance.n_chunks),
        "imatrix.chunk_size": uint32(importance.chunk_size),
    }
    arrays: dict[str, NDArray[Any]] = {}
    for name in sorted(importance.sums):
        arrays[name + _SUMS] = importance.sums[name].astype(_TYPES[ggml_type])
        arrays[name + _COUNTS] = importance.counts[name].astype(_TYPES[ggml_type]).reshape(-1, 1)
    layout = lay_out(metadata, [TensorInfo(name, values.shape, ggml_type) for name, values in arrays.items()])
    with atomic_output(path) as file:
        file.write(layout.header)
        for offset, values in zip(layout.offsets, arrays.values(), strict=True):
            file.seek(offset)
            file.write(values.tobytes())
        file.truncate(layout.n_bytes)
