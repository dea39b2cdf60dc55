"""GGUF files: header and tensor table of one file, or of all parts of a split file, with every number checked.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header is untrusted input: counts, lengths and
offsets are compared with the file before anything is allocated or read by them.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUFValueType

from mimo_gguf.core.certificate_room import Room, room_of, with_empty_room
from mimo_gguf.core.data_file import DataFile
from mimo_gguf.core.digests import FINGERPRINT, GGUF_HEADER
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_header import SCALARS
from mimo_gguf.core.model_source import (
    Bytes,
    FileStamp,
    Metadata,
    MetaValue,
    ModelSource,
    SourceTensor,
    TensorInfo,
)
from mimo_gguf.core.paths import command_word, path_kind

MAX_DIMS: Final = 4
MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME - 1
SPLIT_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's entry in a file: what it is, and the byte where its data starts in that file."""

    info: TensorInfo
    offset: int


@dataclass(frozen=True, slots=True)
class GgufPart:
    """The header of one GGUF file: metadata, tensor table, and the byte at which the tensor data begins.

    Attributes:
        room: the place for a certificate; None if the file reserves none.
    """

    path: Path
    version: int
    alignment: int
    metadata: Metadata
    tensors: tuple[StoredTensor, ...]
    data_offset: int
    header_digest: str
    room: Room | None = None


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A model in GGUF: one part, or the parts of a split file seen as one."""

    parts: tuple[GgufPart, ...]

    @property
    def path(self) -> Path:
        return self.parts[0].path

    @property
    def metadata(self) -> Metadata:
        return self.parts[0].metadata

    @property
    def architecture(self) -> str:
        return str(self.value("general.architecture", "unknown"))

    def tensors(self) -> Iterator[tuple[GgufPart, StoredTensor]]:
        for part in self.parts:
            for tensor in part.tensors:
                yield part, tensor

    def infos(self) -> tuple[TensorInfo, ...]:
        return tuple(tensor.info for _, tensor in self.tensors())

    def value(self, key: str, default: Any = None) -> Any:
        """The plain value of a metadata key, or `default`."""
        entry = self.metadata.get(key)
        return default if entry is None else entry.value


class _Cursor:
    """Reads little-endian values from a buffer and refuses to run past its end."""

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer = buffer
        self.path = path
        self.at = 0

    def fail(self, what: str) -> GgufError:
        return GgufError(
            f"{self.path}: {what} (byte {self.at})", hint="the file is damaged; convert or download it again"
        )

    def need(self, n_bytes: int, what: str) -> None:
        if n_bytes > len(self.buffer) - self.at:
            raise self.fail(f"the file ends inside {what}")

    def scalar(self, fmt: str, what: str) -> Any:
        size = struct.calcsize(fmt)
        self.need(size, what)
        value = struct.unpack_from(fmt, self.buffer, self.at)[0]
        self.at += size
        return value

    def text(self, what: str) -> str:
        length = self.scalar("<Q", what)
        self.need(length, what)
        raw = self.buffer[self.at : self.at + length]
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8 text") from None
        self.at += length
        return decoded

    def value_type(self, what: str) -> GGUFValueType:
        number = self.scalar("<I", what)
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.fail(f"{what} has unknown value type {number}") from None

    def value(self, key: str) -> MetaValue:
        value_type = self.value_type(f"the value of {key}")
        if value_type is GGUFValueType.ARRAY:
            return self._array(key)
        if value_type is GGUFValueType.STRING:
            return MetaValue(value_type, self.text(f"the value of {key}"))
        return MetaValue(value_type, self.scalar(SCALARS[value_type], f"the value of {key}"))

    def _array(self, key: str) -> MetaValue:
        what = f"the array {key}"
        item_type = self.value_type(what)
        count = self.scalar("<Q", what)
        if item_type is GGUFValueType.ARRAY:
            raise self.fail(f"{what} holds arrays, which no known file does")
        if item_type is GGUFValueType.STRING:
            return MetaValue(GGUFValueType.ARRAY, self._texts(count, what), item_type)
        dtype = np.dtype(SCALARS[item_type])
        self.need(dtype.itemsize * count, what)
        values = np.frombuffer(self.buffer, dtype, count, self.at).tolist()
        self.at += dtype.itemsize * count
        return MetaValue(GGUFValueType.ARRAY, values, item_type)

    def _texts(self, count: int, what: str) -> list[str]:
        """Reads `count` strings. A vocabulary with its merges has 300,000, hence the tight loop."""
        self.need(8 * count, what)
        texts = []
        read_length = struct.Struct("<Q").unpack_from
        at, end = self.at, len(self.buffer)
        try:
            for _ in range(count):
                first = at + 8
                at = first + read_length(self.buffer, at)[0]
                texts.append(str(self.buffer[first:at], "utf-8"))
                if at > end:
                    raise struct.error
        except struct.error:
            raise self.fail(f"the file ends inside {what}") from None
        except (UnicodeDecodeError, OverflowError, IndexError):
            raise self.fail(f"{what} holds a string that is not UTF-8 text or has no end") from None
        self.at = at
        return texts


def read_part(path: Path) -> GgufPart:
    """The header of the one file at `path`.

    Raises:
        GgufError: no such file, not GGUF, truncated, or with numbers that contradict each other or the file's size.
    """
    kind = path_kind(path)
    if kind == "folder":
        raise GgufError(f"{path}: is a folder, not a GGUF file", hint=f"mimo-gguf convert {command_word(path)}")
    if kind == "special":  # opening a pipe waits for its writer
        raise GgufError(f"{path}: is a device or pipe, not a GGUF file", hint="give a .gguf file")
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise GgufError(f"{path}: the file is empty", hint="convert or download it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                return _parse(_Cursor(buffer, path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else None
        raise GgufError(f"{path}: {reason or error}", hint="check the path") from None


def _parse(cursor: _Cursor) -> GgufPart:
    if not b"GGUF".startswith(cursor.buffer[:4]):  # a file may break off within these bytes, too
        raise GgufError(f"{cursor.path}: not a GGUF file", hint="give a .gguf file, or a checkpoint folder to convert")
    cursor.need(24, "the GGUF header")
    cursor.at = 4
    version = cursor.scalar("<I", "the GGUF header")
    if version not in (2, 3):
        what = "a big-endian file" if version in (2 << 24, 3 << 24) else f"GGUF version {version}"
        raise cursor.fail(f"{what} is not supported, only little-endian versions 2 and 3")
    n_tensors = cursor.scalar("<Q", "the GGUF header")
    n_values = cursor.scalar("<Q", "the GGUF header")
    metadata: dict[str, MetaValue] = {}
    room = None
    for _ in range(n_values):
        key = cursor.text("a metadata key")
        if not key or "\0" in key:  # llama.cpp reads up to a NUL, so it would see another key
            raise cursor.fail(f"metadata key {key[:80]!r} is empty or has a NUL in it")
        if key in metadata:
            raise cursor.fail(f"metadata key {key} appears twice")
        metadata[key] = cursor.value(key)
        room = room or room_of(key, metadata[key], cursor.at)
    alignment = _alignment(cursor, metadata)
    entries = _tensor_table(cursor, n_tensors)
    header_end = cursor.at
    data_offset = -(-header_end // alignment) * alignment
    tensors = _placed(cursor, entries, data_offset, alignment)
    digest = GGUF_HEADER.hex(with_empty_room(cursor.buffer[:header_end], room))
    return GgufPart(cursor.path, version, alignment, metadata, tensors, data_offset, digest, room)


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    entry = metadata.get("general.alignment")
    alignment = GGUF_DEFAULT_ALIGNMENT if entry is None else entry.value
    is_count = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not is_count or alignment < GGUF_DEFAULT_ALIGNMENT or alignment & (alignment - 1):
        what = f"{str(alignment)[:40]}, not a power of two of at least {GGUF_DEFAULT_ALIGNMENT}"
        raise cursor.fail(f"general.alignment is {what}")  # ggml computes on the mapped file where the data lies
    return int(alignment)


def _tensor_table(cursor: _Cursor, n_tensors: int) -> list[tuple[TensorInfo, int]]:
    cursor.need(24 * n_tensors, "the tensor table")
    entries: list[tuple[TensorInfo, int]] = []
    seen: set[str] = set()
    for _ in range(n_tensors):
        name = cursor.text("a tensor name")
        if name in seen or not name or len(name.encode()) > MAX_NAME_BYTES:
            raise cursor.fail(f"tensor name {name[:80]!r} is repeated, empty or too long")
        seen.add(name)
        n_dims = cursor.scalar("<I", f"tensor {name}")
        if not 1 <= n_dims <= MAX_DIMS:
            raise cursor.fail(f"tensor {name} has {n_dims} dimensions")
        dims = tuple(cursor.scalar("<Q", f"tensor {name}") for _ in range(n_dims))
        number = cursor.scalar("<I", f"tensor {name}")
        try:
            ggml_type = GgmlType(number)
        except ValueError:
            raise cursor.fail(f"tensor {name} has unknown type {number}") from None
        if 0 in dims or math.prod(dims) >= 1 << 62 or dims[0] % GGML_QUANT_SIZES[ggml_type][0]:
            raise cursor.fail(f"tensor {name} of type {ggml_type.name} cannot have shape {list(dims)}")
        offset = cursor.scalar("<Q", f"tensor {name}")
        entries.append((TensorInfo(name, dims[::-1], ggml_type), offset))
    return entries


def _placed(
    cursor: _Cursor, entries: list[tuple[TensorInfo, int]], data_offset: int, alignment: int
) -> tuple[StoredTensor, ...]:
    end_of_last = 0
    placed = []
    for info, offset in sorted(entries, key=lambda entry: entry[1]):
        if offset % alignment or offset < end_of_last:
            raise cursor.fail(f"tensor {info.name} at offset {offset} is misaligned or overlaps the one before it")
        end_of_last = offset + info.n_bytes
        if data_offset + end_of_last > len(cursor.buffer):
            raise GgufError(
                f"{cursor.path}: tensor {info.name} ends at byte {data_offset + end_of_last}, the file at "
                f"{len(cursor.buffer)}",
                hint="the file is truncated; convert or download it again",
            )
        placed.append(StoredTensor(info, data_offset + offset))
    return tuple(placed)


def read_gguf(path: str | Path) -> GgufFile:
    """The model at `path`; given any part of a split file, the whole of it.

    Raises:
        GgufError: as `read_part`; also a part that is missing or belongs to another model.
    """
    first = read_part(Path(path))
    count = _split_number(first, "split.count") or 1
    if count == 1:
        return GgufFile((first,))
    match = SPLIT_NAME.fullmatch(first.path.name)
    if match is None or int(match["count"]) != count:
        raise GgufError(
            f"{first.path}: one of {count} parts, but its name does not end in -NNNNN-of-{count:05d}.gguf",
            hint="give the parts their original names back",
        )
    names = (f"{match['stem']}-{number + 1:05d}-of-{count:05d}.gguf" for number in range(count))
    parts = tuple(_checked_part(first.path.with_name(name), number, count) for number, name in enumerate(names))
    names_seen = [tensor.info.name for part in parts for tensor in part.tensors]
    if len(names_seen) != len(set(names_seen)):
        raise GgufError(f"{first.path}: a tensor appears in two parts", hint="the parts are of different models")
    return GgufFile(parts)


def _split_number(part: GgufPart, key: str) -> int | None:
    """The number of a part, or of the parts; None if it is missing.

    Raises:
        GgufError: it is stored as another type, at which llama.cpp ends the process.
    """
    entry = part.metadata.get(key)
    if entry is not None and entry.value_type is not GGUFValueType.UINT16:
        raise GgufError(
            f"{part.path}: {key} is a {entry.value_type.name.lower()}, not a uint16",
            hint="split the whole file again with llama-gguf-split, or use the whole file",
        )
    return None if entry is None else int(entry.value)


def _checked_part(path: Path, number: int, count: int) -> GgufPart:
    part = read_part(path)
    stored = tuple(_split_number(part, key) for key in ("split.no", "split.count"))
    if stored != (number, count):
        raise GgufError(
            f"{path}: says it is part {stored}, not ({number}, {count})", hint="parts of two models are mixed"
        )
    return part


def open_gguf(path: str | Path) -> ModelSource:
    """The GGUF at `path` as a ModelSource. The parts of a split file are joined, without their split.* keys.

    Raises:
        GgufError: as `read_gguf`.
    """
    model = read_gguf(path)
    files = {part.path: DataFile(part.path, GgufError) for part in model.parts}
    tensors = tuple(
        SourceTensor(
            tensor.info,
            f"{tensor.info.name} in {part.path.name}",
            partial(_read_rows, files[part.path], tensor.offset, tensor.info.row_bytes),
            tensor.offset,
        )
        for part, tensor in model.tensors()
    )
    stamps = tuple(file.stamp for file in files.values())

    def close() -> None:
        for file in files.values():
            file.close()

    return ModelSource(
        label=str(path),
        name=model_name(model),
        metadata={key: value for key, value in model.metadata.items() if not key.startswith("split.")},
        tensors=tensors,
        files=stamps,
        fingerprint=_fingerprint(model, stamps),
        close=close,
    )


def _read_rows(file: DataFile, offset: int, row_bytes: int, first: int, last: int, out: Bytes) -> None:
    file.read_into(offset + first * row_bytes, out)


def model_name(model: GgufFile) -> str:
    """The file name without part number and file type: `MiMo-7B-RL-Q4_K_M.gguf` -> `MiMo-7B-RL`."""
    match = SPLIT_NAME.fullmatch(model.path.name)
    stem = match["stem"] if match else model.path.stem
    suffix = re.compile(r"[-._](?:[bf]?f?p?(?:16|32)|i?q\d[\w]*|q8_0|tq\d_0|mxfp4\w*)$", re.IGNORECASE)
    return suffix.sub("", stem)


def _fingerprint(model: GgufFile, stamps: tuple[FileStamp, ...]) -> str:
    return FINGERPRINT.hex(
        *(
            f"{part.header_digest} {stamp.size_bytes} {stamp.mtime_ns}\n".encode()
            for part, stamp in zip(model.parts, stamps, strict=True)
        )
    )
