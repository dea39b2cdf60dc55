"""GGUF headers as bytes, and the place of each tensor's data.

gguf.GGUFWriter would need a file to write to, and a second for a real vocabulary (300,000 strings). The tests compare
the bytes with what it writes. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGUFValueType

from mimo_gguf.core.certificate_room import Room, room_of
from mimo_gguf.core.model_source import Metadata, MetaValue, TensorInfo

_VERSION: Final = 3
SCALARS: Final[dict[GGUFValueType, str]] = {
    GGUFValueType.UINT8: "<B", GGUFValueType.INT8: "<b", GGUFValueType.UINT16: "<H", GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I", GGUFValueType.INT32: "<i", GGUFValueType.FLOAT32: "<f", GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q", GGUFValueType.INT64: "<q", GGUFValueType.FLOAT64: "<d",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """The layout of a GGUF file: header bytes (padded to the data), first byte of each tensor, file size.

    Attributes:
        room: the place for a certificate in the header; None if the metadata reserves none.
    """

    header: bytes
    offsets: tuple[int, ...]
    n_bytes: int
    room: Room | None = None


def lay_out(metadata: Metadata, tensors: Sequence[TensorInfo], alignment: int = GGUF_DEFAULT_ALIGNMENT) -> GgufLayout:
    """The layout of the file that holds `tensors` in this order.

    The last tensor's data is padded, too, as llama.cpp's own writers do. An empty array cannot be expressed and is left
    out. Metadata of a whole model holds general.architecture; a later part of a split file need not.
    """
    relative = []
    at = 0
    for info in tensors:
        relative.append(at)
        at += -(-info.n_bytes // alignment) * alignment
    header, room = _header_bytes(metadata, tensors, relative)
    header += bytes(-len(header) % alignment)
    return GgufLayout(header, tuple(len(header) + offset for offset in relative), len(header) + at, room)


def _header_bytes(
    metadata: Metadata, tensors: Sequence[TensorInfo], offsets: Sequence[int]
) -> tuple[bytes, Room | None]:
    entries = {
        key: entry
        for key, entry in metadata.items()
        if entry.value_type is not GGUFValueType.ARRAY or len(entry.value) > 0
    }
    first = {key: entries[key] for key in ("general.architecture",) if key in entries}
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(entries))]
    room = None
    for key, entry in (first | entries).items():
        parts += [_text(key), _value(entry)]
        room = room or room_of(key, entry, sum(map(len, parts)))
    for info, offset in zip(tensors, offsets, strict=True):
        parts.append(_text(info.name))
        parts.append(struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape)))
        parts.append(struct.pack("<IQ", info.ggml_type, offset))
    return b"".join(parts), room


def _value(entry: MetaValue) -> bytes:
    head = struct.pack("<I", entry.value_type)
    if entry.value_type is not GGUFValueType.ARRAY:
        return head + _scalar(entry.value_type, entry.value)
    item_type = entry.item_type
    assert item_type is not None  # an ARRAY says of what
    head += struct.pack("<IQ", item_type, len(entry.value))
    if item_type is GGUFValueType.STRING:
        return head + _texts(entry.value)
    return head + np.asarray(entry.value, SCALARS[item_type].replace("?", "u1")).tobytes()


def _scalar(value_type: GGUFValueType, value: Any) -> bytes:
    return _text(value) if value_type is GGUFValueType.STRING else struct.pack(SCALARS[value_type], value)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _texts(texts: Iterable[str]) -> bytes:
    pack = struct.Struct("<Q").pack
    parts: list[bytes] = []
    for text in texts:
        raw = text.encode()
        parts += (pack(len(raw)), raw)
    return b"".join(parts)
