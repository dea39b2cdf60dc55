"""A file of known size that is written at fixed offsets from many threads, under a hidden name until it is complete.

Other programs may delete, truncate or replace the file, or move its folder, while it is written. An open descriptor
would go on writing into what no name leads to. So identity and size are compared with what the name leads to: now and
then while the run goes on, before the file gets its final name, and after.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
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


def _meddled(path: Path, what: str) -> OutputError:
    return OutputError(
        f"{path}: was {what} by another program while this run was writing it",
        hint="leave the hidden files beside the output alone, and run the same command again",
    )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a small file at once; a crash leaves at most its partial, which the next attempt takes over.

    Raises:
        OutputError: the disk is full or failing, or another program meddled with the file.
    """
    file = PartialFile.open(path, len(data))
    try:
        file.write_at(0, data)
        file.sync()
        file.appear()
    finally:
        file.close()


@dataclass(slots=True)
class PartialFile:
    """An open partial file; every method may be called from any thread.

    Attributes:
        path: its name once it is complete.
    """

    path: Path
    n_bytes: int
    _fd: int
    _identity: os.stat_result
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
        return cls(path, n_bytes, fd, os.fstat(fd))

    def write_at(self, offset: int, data: Bytes | bytes) -> None:
        """Writes all of `data`, contiguous, from byte `offset`.

        Raises:
            OutputError: the disk is full or failing, or another program truncated the file.
        """
        view = memoryview(data if isinstance(data, bytes) else data.data).cast("B")
        n_bytes = len(view)
        try:
            if os.fstat(self._fd).st_size != self.n_bytes:  # writing would bring the size back, with zeros in between
                raise _meddled(self.path, "truncated")
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

    def holes(self) -> Iterator[tuple[int, int]]:
        """Ranges that were never written, or cut off since: (first byte, byte behind), where the system tells.

        A file system that stores zeros as holes tells of these, too.
        """
        if not hasattr(os, "SEEK_HOLE"):
            return
        at = 0
        try:
            while (hole := os.lseek(self._fd, at, os.SEEK_HOLE)) < self.n_bytes:
                at = self.n_bytes
                try:
                    at = os.lseek(self._fd, hole, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # no data behind the hole
                        raise
                yield hole, at
        except OSError:  # the file system does not tell
            return

    def check_in_place(self) -> None:
        """Raises OutputError if another program deleted, replaced or truncated the file, or moved its folder."""
        self._check_leads_here(partial_path(self.path))

    def check_named(self) -> None:
        """Raises OutputError if another program has deleted, replaced or truncated the finished file, or moved it."""
        self._check_leads_here(self.path)

    def _check_leads_here(self, name: Path) -> None:
        try:
            there = name.stat()
        except OSError:
            raise _meddled(self.path, "deleted or moved") from None
        if not os.path.samestat(there, self._identity):
            raise _meddled(self.path, "replaced")
        if there.st_size != self.n_bytes:
            raise _meddled(self.path, "truncated" if there.st_size < self.n_bytes else "changed")

    def appear(self) -> None:
        """Gives the complete, synced file its name; the folder has still to be synced.

        Raises:
            OutputError: the system refuses, or another program meddled with the file.
        """
        self.check_in_place()
        if os.name == "nt":  # an open file cannot be renamed there
            self.close()
        try:
            partial_path(self.path).replace(self.path)
        except OSError as error:
            raise write_error(self.path, error) from None
        self.check_named()

    def remove(self) -> None:
        """Closes the file and removes it, unless another program has put a file of its own in its place."""
        self.close()
        try:
            if os.path.samestat(partial_path(self.path).stat(), self._identity):
                partial_path(self.path).unlink()
        except OSError:
            pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
