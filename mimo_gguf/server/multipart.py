"""Reads an upload (multipart/form-data, RFC 7578) as it arrives: fields into memory, the file into wherever it goes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mimo_gguf.server.failures import Refused, refusal

_LONGEST_HEAD: Final = 16 << 10
_LONGEST_FIELD: Final = 64 << 10
_MOST_FIELDS: Final = 32
_BOUNDARY: Final = re.compile(r"boundary=(?:\"([^\"\r\n]{1,70})\"|([^\s;,\"]{1,70}))", re.IGNORECASE)
_NAME: Final = re.compile(r"[;\s]name=\"((?:[^\"\\]|\\.)*)\"", re.IGNORECASE)
_FILENAME: Final = re.compile(r"[;\s]filename=\"((?:[^\"\\]|\\.)*)\"", re.IGNORECASE)


@dataclass(slots=True)
class Upload:
    """An upload that is being read. `feed` takes pieces of its body until `finish`.

    Attributes:
        write: takes pieces of the one file.
        fields: the other parts, by name.
        filename: what the client calls the file; None until it has come.
    """

    boundary: bytes
    write: Callable[[bytes], object]
    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    _buffer: bytearray = field(default_factory=lambda: bytearray(b"\r\n"))
    _state: str = "before"  # before the first part, in a head, in the file, in a field, after the last part
    _name: str = ""
    _value: bytearray = field(default_factory=bytearray)

    @classmethod
    def of(cls, content_type: str, write: Callable[[bytes], object]) -> Upload:
        """The upload that a Content-Type announces. Raises Refused if it announces none."""
        found = _BOUNDARY.search(content_type)
        if not content_type.lower().startswith("multipart/form-data") or found is None:
            raise refusal(415, "a file is uploaded as multipart/form-data", code="not_multipart")
        return cls((found[1] or found[2]).encode("latin-1"), write)

    def feed(self, piece: bytes) -> None:
        """Reads a piece. Raises Refused if the body is not what it should be."""
        self._buffer += piece
        while self._advance():
            pass

    def finish(self) -> None:
        """Raises Refused if the body has ended too early, or had no file."""
        if self._state != "after":
            raise _broken("it ends too early")
        if self.filename is None:
            raise refusal(400, "missing field: file", code="missing_field", param="file")

    def _advance(self) -> bool:
        """Reads as far as the next mark. Returns whether there may be another one in the buffer."""
        if self._state == "after":
            self._buffer.clear()
            return False
        return self._read_head() if self._state == "head" else self._read_part()

    def _read_part(self) -> bool:
        mark = b"\r\n--" + self.boundary
        at = self._buffer.find(mark)
        end = at if at >= 0 else max(len(self._buffer) - len(mark) - 4, 0)
        rest = len(mark) + 2  # what follows the mark: a line's end, or two dashes
        if at >= 0 and len(self._buffer) < at + rest:
            return False
        self._take(bytes(self._buffer[:end]))
        if at < 0:
            del self._buffer[:end]
            return False
        after = bytes(self._buffer[at + len(mark) : at + rest])
        del self._buffer[: at + rest]
        if after not in {b"\r\n", b"--"}:
            raise _broken("a boundary is followed by something else")
        self._end_part()
        self._state = "head" if after == b"\r\n" else "after"
        return True

    def _read_head(self) -> bool:
        at = self._buffer.find(b"\r\n\r\n")
        if at < 0:
            if len(self._buffer) > _LONGEST_HEAD:
                raise _broken("a part's head is too long")
            return False
        head = bytes(self._buffer[:at]).decode("utf-8", "replace")
        del self._buffer[: at + 4]
        line = next((each for each in head.split("\r\n") if each.lower().startswith("content-disposition:")), "")
        name, filename = _NAME.search(line), _FILENAME.search(line)
        if name is None:
            raise _broken("a part has no name")
        self._name = name[1]
        self._value.clear()
        self._state = "field"
        if self._name == "file":
            if filename is None or self.filename is not None:
                raise _broken("it needs one file, with a filename")
            self.filename, self._state = filename[1].replace('\\"', '"'), "file"
        return True

    def _take(self, data: bytes) -> None:
        if self._state == "file" and data:
            self.write(data)
        elif self._state == "field":
            self._value += data
            if len(self._value) > _LONGEST_FIELD:
                raise _broken("a field is too long")

    def _end_part(self) -> None:
        if self._state == "field":
            if len(self.fields) >= _MOST_FIELDS:
                raise _broken("it has too many fields")
            self.fields[self._name] = self._value.decode("utf-8", "replace")


def _broken(why: str) -> Refused:
    return refusal(400, f"the upload cannot be read: {why}", code="invalid_multipart")
