"""A model to read from: metadata, and tensors whose rows are read when they are needed.

A checkpoint seen through a conversion recipe is one, an existing GGUF is another. Planning, quantizing and writing see
only this, so every path through the program is the same loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from mimo_gguf.core.arrival import Arrival, FilePlace
from mimo_gguf.core.errors import WeightsError
from mimo_gguf.core.ggml_types import GgmlType, row_bytes

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class MetaValue:
    """One GGUF metadata value with its type as stored.

    `value` is a bool, int, float or str; for an ARRAY a list of those (or a numpy array of numbers) of `item_type`.
    """

    value_type: GGUFValueType
    value: Any
    item_type: GGUFValueType | None = None


Metadata = Mapping[str, MetaValue]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a tensor is, without its data.

    `shape` is in row-major order (rows before columns, as numpy and torch print it); GGUF stores it reversed.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GgmlType

    @property
    def n_columns(self) -> int:
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        return self.n_elements // self.shape[-1] if self.shape[-1] else 0

    @property
    def n_elements(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.ggml_type, self.n_columns)

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.row_bytes


class ReadRows(Protocol):
    """Fills `out`, uint8 of shape (last - first, row_bytes), with rows [first, last) as stored in the source type.

    It may be called from several threads at once.

    Raises:
        CheckpointError, GgufError: the data ends early.
    """

    def __call__(self, first: int, last: int, out: Bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a source.

    Attributes:
        origin: where it comes from, for messages.
        read_rows: how its rows are read.
        offset: byte of its file at which the rows start; a `FileBuffer` at this offset is filled without a copy.
        place: where the rows lie, if their file is fetched while it is read. Then they are read as `Arrival` says.
    """

    info: TensorInfo
    origin: str
    read_rows: ReadRows
    offset: int = 0
    place: FilePlace | None = None


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Size and modification time of an input file when it was opened, to notice that it changes during a run."""

    path: Path
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model: where it comes from, its metadata, and its tensors in the order an output lists them.

    Attributes:
        label: what the user called it (a path or a Hub id), for messages.
        name: the model's own name, for output file names ("MiMo-7B-RL").
        metadata: GGUF keys to values, complete but for general.file_type and quantization keys.
        files: every input file with its stamp.
        fingerprint: hex digest of everything that decides the output: recipe, headers, and the stamps of the files.
        notes: what the user should know about the model itself, in words.
        close: closes the files.
        arrival: the files that are fetched while they are read; None if all of them lie on this machine.
    """

    label: str
    name: str
    metadata: Metadata
    tensors: tuple[SourceTensor, ...]
    files: tuple[FileStamp, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    close: Callable[[], None] = field(default=lambda: None, repr=False)
    arrival: Arrival | None = field(default=None, repr=False)

    def __enter__(self) -> ModelSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_unchanged(self) -> None:
        """Raises WeightsError if an input file changed or vanished since it was opened; the message names the first."""
        for stamp in self.files:
            try:
                now = FileStamp.of(stamp.path)
            except OSError:
                now = None
            if now != stamp:
                what = "vanished" if now is None else "changed"
                raise WeightsError(f"{stamp.path}: the file {what} while it was being read", hint="run again")


def string(value: str) -> MetaValue:
    return MetaValue(GGUFValueType.STRING, value)


def uint32(value: int) -> MetaValue:
    return MetaValue(GGUFValueType.UINT32, value)


def float32(value: float) -> MetaValue:
    return MetaValue(GGUFValueType.FLOAT32, value)


def boolean(value: bool) -> MetaValue:
    return MetaValue(GGUFValueType.BOOL, value)


def array(item_type: GGUFValueType, values: Iterable[Any]) -> MetaValue:
    return MetaValue(GGUFValueType.ARRAY, list(values), item_type)
