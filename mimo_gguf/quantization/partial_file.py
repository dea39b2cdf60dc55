"""A file of known size that is written at fixed offsets from many threads, under a hidden name until it is complete."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mimo_gguf.core import positioned_io
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.model_source import Bytes

_WORTH_DRAINING_BYTES: Final = 1 << 26


def partial_path(path: Path) -> Path:
    """Where `path` is built."""
    return path.with_name(f".{path.name}.partial")


def write_error(path: Path, error: OSError) -> OutputError:
    """The one clear line for an operating system's refusal to write."""
    if error.errno == errno.ENOSPC or error.errno == getattr(errno, "EDQUOT", -1):
        return OutputError(
            f"{path}: the disk is full", hint="free some space and run the same command again: it goes on from here"
        )
    if error.errno == errno.EFBIG:
        return OutputError(
            f"{path}: the file system holds no file so large", hint="add --split-max-size 2GB, or choose another disk"
        )
    return OutputError(f"{path}: {error.strerror or error}", hint="check the disk, or choose another place with -o")


def appear(path: Path) -> None:
    """Gives a finished, synced partial its name; the folder has still to be synced.

    Raises:
        OutputError: the system refuses.
    """
    try:
        partial_path(path).replace(path)
    except OSError as error:
        raise write_error(path, error) from None


def write_whole(path: Path, data: bytes) -> None:
    """A small file, written at once; a crash leaves at most its partial, which the next attempt takes over.

    Raises:
        OutputError: the disk is full or failing.
    """
    file = PartialFile.open(path, len(data))
    try:
        file.write_at(0, data)
        file.sync()
    finally:
        file.close()
    appear(path)


@dataclass(slots=True)
class PartialFile:
    """An open partial file; every method may be called from any thread."""

    path: Path
    n_bytes: int
    _fd: int
    _waiting_bytes: int = 0  # written since the last drain; threads may miscount it, it only says when

    @classmethod
    def open(cls, path: Path, n_bytes: int) -> PartialFile:
        """Opens or creates the partial of `path` at its final size (a hole, filled as chunks arrive).

        Raises:
            OutputError: it cannot be created.
        """
        try:
            fd = os.open(partial_path(path), os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            os.ftruncate(fd, n_bytes)
        except OSError as error:
            raise write_error(path, error) from None
        return cls(path, n_bytes, fd)

    def write_at(self, offset: int, data: Bytes | bytes) -> None:
        """Writes all of `data`, contiguous, from byte `offset`.

        Raises:
            OutputError: the disk is full or failing.
        """
        view = memoryview(data if isinstance(data, bytes) else data.data).cast("B")
        n_bytes = len(view)
        try:
            while view:
                n = positioned_io.write_at(self._fd, view, offset)
                view, offset = view[n:], offset + n
        except OSError as error:
            raise write_error(self.path, error) from None
        self._waiting_bytes += n_bytes

    def drain(self) -> None:
        """Sends what was written to the disk and lets go of its memory, once it is worth it (where the system can).

        Else the kernel keeps gigabytes of written pages: it stops the writers when they are too many, and every chunk
        needs fresh memory, which costs more than the copy into it. Draining halves the time spent in writing.

        Raises:
            OutputError: the disk is full or failing.
        """
        if not hasattr(os, "posix_fadvise") or self._waiting_bytes < _WORTH_DRAINING_BYTES:
            return
        self._waiting_bytes = 0
        try:
            os.fdatasync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise write_error(self.path, error) from None

    def read_at(self, offset: int, out: Bytes) -> bool:
        """Fills `out` from byte `offset`; False where that is impossible."""
        view = out.data.cast("B")
        try:
            while view:
                n = positioned_io.read_at(self._fd, view, offset)
                if n == 0:
                    return False
                view, offset = view[n:], offset + n
        except OSError:
            return False
        return True

    def sync(self) -> None:
        """Makes everything written so far durable.

        Raises:
            OutputError: the disk is full or failing.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise write_error(self.path, error) from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
