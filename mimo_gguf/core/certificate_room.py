"""Room for a certificate in a GGUF's header, so that one can be written into a finished file without moving a tensor.

The room is the text value of one key. It always has the same length: the certificate, in ASCII, and spaces behind it.
Writing a certificate replaces these bytes and no others, so no length, count or offset in the file ever changes. Every
GGUF reader accepts the file at any moment, even after a crash in the middle of the writing: what it finds in the room
is text. Whether that text is whole is told by the digest in it; see `stored_certificate`.

Digests of a header take the room as empty, so that a certificate changes none of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gguf import GGUFValueType

from mimo_gguf.core import positioned_io
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.model_source import MetaValue, string

CERTIFICATE_KEY: Final = "mimo_gguf.certificate"
ROOM_BYTES: Final = 16 << 10  # a certificate has about 1 KB for each kind of text


@dataclass(frozen=True, slots=True)
class Room:
    """The place of a certificate in a file.

    Attributes:
        offset: of the room's first byte in the file.
        n_bytes: the length of the room, full or empty.
    """

    offset: int
    n_bytes: int

    @property
    def end(self) -> int:
        """The byte behind the room."""
        return self.offset + self.n_bytes


def empty_room() -> MetaValue:
    """The metadata value that reserves room for a certificate: spaces."""
    return string(" " * ROOM_BYTES)


def room_of(key: str, entry: MetaValue, end: int) -> Room | None:
    """The room that a metadata entry is; None if it is another entry.

    Args:
        end: the byte of the file at which the entry ends.
    """
    if key != CERTIFICATE_KEY or entry.value_type is not GGUFValueType.STRING:
        return None
    n_bytes = len(entry.value.encode())
    return Room(end - n_bytes, n_bytes)


def with_empty_room(data: bytes, room: Room | None, first: int = 0) -> bytes:
    """The bytes of a file from byte `first` on, with spaces where its room is. They need not hold all of it."""
    if room is None:
        return data
    begin = min(max(room.offset - first, 0), len(data))
    end = min(max(room.end - first, 0), len(data))
    return data[:begin] + b" " * (end - begin) + data[end:]


def write_into_room(path: Path, room: Room, text: str) -> None:
    """Puts a certificate in place of what is in the room, and makes it durable.

    Raises:
        OutputError: the text is longer than the room or not ASCII, or the file cannot be written.
    """
    if not text.isascii() or len(text) > room.n_bytes:
        raise OutputError(
            f"{path}: the certificate ({len(text)} characters) does not fit into its room ({room.n_bytes} bytes)",
            hint="measure fewer kinds of text",
        )
    view, offset = memoryview(text.ljust(room.n_bytes).encode()), room.offset
    try:
        fd = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            while view:
                n = positioned_io.write_at(fd, view, offset)
                view, offset = view[n:], offset + n
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}", hint="check the disk and its permissions") from None
