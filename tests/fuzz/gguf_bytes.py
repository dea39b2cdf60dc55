"""A GGUF taken apart and put together again, so that a mutant is well-formed: sizes and offsets agree with each other.

The writer is apart from the package's own on purpose: it also writes what that one never would.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from mimo_gguf.core.gguf_file import read_part
from mimo_gguf.core.gguf_header import SCALARS
from mimo_gguf.core.model_source import MetaValue

_ALIGNMENT: Final = 32
_KNOWN_TYPES: Final = frozenset(int(kind) for kind in GGMLQuantizationType)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: `dims` as GGUF stores them (columns first), `moved` bytes are added to its true offset."""

    name: str
    dims: tuple[int, ...]
    ggml_type: int
    data: bytes
    moved: int = 0

    def sized(self) -> Tensor:
        """The same with as much data as its type and dimensions ask for, if that can be known and is not absurd."""
        if self.ggml_type not in _KNOWN_TYPES:
            return self
        weights, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(self.ggml_type)]
        count = 1
        for extent in self.dims:
            count *= extent
        size = count // weights * n_bytes
        if size > 1 << 24:
            return self
        repeats = -(-size // max(len(self.data), 1))
        return replace(self, data=(self.data * repeats)[:size].ljust(size, b"\0"))


@dataclass(slots=True)
class GgufParts:
    """What a file is made of; a mutation changes it in place."""

    metadata: dict[str, MetaValue] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    alignment: int = _ALIGNMENT

    def copy(self) -> GgufParts:
        return GgufParts(dict(self.metadata), list(self.tensors), self.alignment)

    @property
    def architecture(self) -> str:
        entry = self.metadata.get("general.architecture")
        return "step35" if entry is None else str(entry.value)


def take_apart(path: Path) -> GgufParts:
    """The parts of the single file at `path`."""
    part = read_part(path)
    raw = path.read_bytes()
    tensors = [
        Tensor(
            stored.info.name,
            stored.info.shape[::-1],
            int(stored.info.ggml_type),
            raw[stored.offset : stored.offset + stored.info.n_bytes],
        )
        for stored in part.tensors
    ]
    return GgufParts(dict(part.metadata), tensors)


def put_together(parts: GgufParts) -> bytes:
    """The file's bytes."""
    alignment = max(parts.alignment, 1)
    offsets, at = [], 0
    for tensor in parts.tensors:
        offsets.append((at + tensor.moved) % (1 << 64))
        at += -(-len(tensor.data) // alignment) * alignment
    header = b"".join(_header(parts, offsets))
    body = b"".join(tensor.data + bytes(-len(tensor.data) % alignment) for tensor in parts.tensors)
    return header + bytes(-len(header) % alignment) + body


def _header(parts: GgufParts, offsets: Sequence[int]) -> list[bytes]:
    pieces = [b"GGUF", struct.pack("<IQQ", 3, len(parts.tensors), len(parts.metadata))]
    for key, entry in parts.metadata.items():
        pieces += [_text(key), struct.pack("<I", entry.value_type), _value(entry)]
    for tensor, offset in zip(parts.tensors, offsets, strict=True):
        dims = [extent % (1 << 64) for extent in tensor.dims]
        pieces.append(_text(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        pieces.append(struct.pack("<IQ", tensor.ggml_type, offset))
    return pieces


def _value(entry: MetaValue) -> bytes:
    if entry.value_type is not GGUFValueType.ARRAY:
        return _scalar(entry.value_type, entry.value)
    assert entry.item_type is not None
    head = struct.pack("<IQ", entry.item_type, len(entry.value))
    if entry.item_type is GGUFValueType.STRING:
        return head + b"".join(_text(text) for text in entry.value)
    return head + np.asarray(entry.value, SCALARS[entry.item_type].replace("?", "u1")).tobytes()


def _scalar(value_type: GGUFValueType, value: Any) -> bytes:
    return _text(value) if value_type is GGUFValueType.STRING else struct.pack(SCALARS[value_type], value)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
