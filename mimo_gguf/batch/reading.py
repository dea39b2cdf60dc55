"""Reads the lines of an input, from a file or a pipe: as many at a time as there are, within a bounded memory."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.paths import path_kind

LOOK_AHEAD: Final = 1024  # rows that are read before the first of them is answered
_LOOK_AHEAD_BYTES: Final = 32 << 20
_LONGEST: Final = 64 << 20  # bytes of a line
_PIECE: Final = 1 << 18
_BOM: Final = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A line that is not blank: its number from 1 on, and its bytes; None if it is longer than any row."""

    number: int
    data: bytes | None


class Stamp(NamedTuple):
    """What changes with a file: size, time of the last change, and the file itself."""

    n_bytes: int
    mtime_ns: int
    inode: int


class Lines:
    """The lines of an open descriptor, in blocks."""

    def __init__(self, fd: int, *, n_before: int = 0, n_bytes: int | None = None) -> None:
        """Reads from `fd`, which is not closed here.

        Args:
            n_before: lines before the first one, for their numbers.
            n_bytes: bytes that are read, which end with a line; None for all.
        """
        self._fd = fd
        self._left_bytes = n_bytes
        self._rest = bytearray()  # of a line that has not ended
        self._is_too_long = False
        self._number = n_before
        self._ended = False
        self._come: deque[Line] = deque()  # lines that were read and not yet given

    def block(self) -> list[Line]:
        """The next lines, at least one; none at the end of the input.

        It waits for the first one. Then it takes what is there, up to `LOOK_AHEAD` rows.

        Raises:
            UsageError: the input cannot be read.
        """
        found: list[Line] = []
        n_bytes = 0
        while len(found) < LOOK_AHEAD and n_bytes < _LOOK_AHEAD_BYTES:
            if self._come:
                found.append(self._come.popleft())
                n_bytes += len(found[-1].data or b"")
            elif self._ended or (found and not self._is_ready()):
                break
            else:
                self._come.extend(self._read())
        return found

    def _is_ready(self) -> bool:
        if sys.platform == "win32":  # pragma: no cover - select is for sockets alone there
            return False
        return bool(select.select([self._fd], [], [], 0)[0])

    def _read(self) -> Iterator[Line]:
        piece = _read(self._fd, _PIECE if self._left_bytes is None else min(_PIECE, self._left_bytes))
        if self._left_bytes is not None:
            self._left_bytes -= len(piece)
        self._ended = not piece
        first, *others = piece.split(b"\n") if piece else (b"\n").split(b"\n")
        self._add(first)
        for part in others:
            yield from self._take()
            self._add(part)

    def _add(self, part: bytes) -> None:
        if len(self._rest) + len(part) > _LONGEST:
            self._is_too_long = True
            self._rest.clear()
        if not self._is_too_long:
            self._rest += part

    def _take(self) -> Iterator[Line]:
        """The line that has just ended, unless it is blank."""
        data, is_too_long = bytes(self._rest), self._is_too_long
        self._rest.clear()
        self._is_too_long = False
        if self._ended and not data and not is_too_long:
            return
        self._number += 1
        if self._number == 1:
            data = data.removeprefix(_BOM)
        if is_too_long:
            yield Line(self._number, None)
        elif data.strip():
            yield Line(self._number, data)


class InputFile:
    """A file of rows that is open, and may not change until it has been read.

    Attributes:
        stamp: its state when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file. Raises UsageError if that cannot be."""
        if path_kind(path) not in {"file", "special"}:
            what = "is a folder" if path_kind(path) == "folder" else "no such file"
            raise UsageError(f"{path}: {what}", hint="give a file of rows, or - for stdin")
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}", hint="check the path and permissions") from None
        self.stamp = self._stamp_now()

    def lines(self) -> Lines:
        """The lines from the beginning. Lines that were given before end then."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        return Lines(self.fd)

    def blocks(self, n_bytes: int) -> Iterator[bytes]:
        """All bytes from the beginning, so many at a time. Raises UsageError if they cannot be read."""
        os.lseek(self.fd, 0, os.SEEK_SET)
        while block := _read(self.fd, n_bytes):
            yield block

    def check_unchanged(self) -> None:
        """Raises UsageError if the file was written to, or replaced by another one, since it was opened."""
        self.check_is(self.stamp)

    def check_is(self, stamp: Stamp) -> None:
        """Raises UsageError if the file is not in this state any more."""
        if self._stamp_now() != stamp:
            raise UsageError(
                f"{self.path}: has changed while it was being answered",
                hint="no answer is lost: run the same command again",
            )

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def _stamp_now(self) -> Stamp:
        try:
            found = self.path.stat()
        except OSError:
            return Stamp(-1, -1, -1)
        return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


def _read(fd: int, n_bytes: int) -> bytes:
    try:
        return os.read(fd, n_bytes)
    except OSError as error:
        raise UsageError(f"the input cannot be read: {error.strerror or error}", hint="give a file") from None
