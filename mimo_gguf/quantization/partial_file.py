"""Writes a file of known size at fixed offsets from many threads, under a hidden name until it is complete.

Other programs may delete, truncate or replace the file, or move its folder, while it is written. An open descriptor
would then write into a file that has no name. So the file's identity and size are compared with the file of that name:
now and then during the run, and before and after it gets its final name.
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
    """The hidden name under which `path` is written."""
    return path.with_name(f".{path.name}.partial")


def write_error(path: Path, error: OSError) -> OutputError:
    """Describes in one clear line why the operating system refused to write."""
    if error.errno == errno.ENOSPC or error.errno == getattr(errno, "EDQUOT", -1):
        return OutputError(
            f"{path}: the disk is full", hint="free some space and run the same command again: it goes on from here"
        )
    if error.errno == errno.EFBIG:
        return OutputError(
            f"{path}: the file system cannot hold so large a file", hint="add --split-max-size 2GB, or use another disk"
        )
    return OutputError(f"{path}: {error.strerror or error}", hint="check the disk, or choose another place with -o")


def _meddled(path: Path, what: str) -> OutputError:
    return OutputError(
        f"{path}: was {what} by another program while this run was writing it",
        hint="leave the hidden files beside the output alone, and run the same command again",
    )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a small file at once. A crash leaves at most its partial file, which the next attempt overwrites.

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
        path: the file's name once it is complete.
    """

    path: Path
    n_bytes: int
    _fd: int
    _identity: os.stat_result
    _waiting_bytes: int = 0  # since the last drain; threads may miscount: it only decides when

    @classmethod
    def open(cls, path: Path, n_bytes: int) -> PartialFile:
        """Opens or creates the partial file of `path` at its final size: a hole, filled as chunks arrive.

        Raises:
            OutputError: the file cannot be created.
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
        """Sends what was written to the disk and frees its memory, if there is enough of it and the system can.

        Otherwise the kernel keeps gigabytes of written pages. It stops the writers when they are too many, and every
        chunk needs fresh memory, which costs more than the copy into it. Draining halves the time spent in writing.

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
        """Fills `out` from byte `offset`. False if that is impossible."""
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
        """Finds the byte ranges [first, last) that were never written, or were cut off since.

        None are found if the system does not report holes. A file system may store written zeros as holes, too.
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
                    if error.errno != errno.ENXIO:  # no data after the hole
                        raise
                yield hole, at
        except OSError:  # the file system does not report holes
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
        """Renames the complete, synced file to its final name. The folder has still to be synced.

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
        """Closes the file and removes it, unless another program has put a file in its place."""
        self.close()
        try:
            if os.path.samestat(partial_path(self.path).stat(), self._identity):
                partial_path(self.path).unlink()
        except OSError:
            pass

    def close(self) -> None:
        """Closes the file and leaves it where it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
