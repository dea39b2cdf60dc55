"""Where answers go. A file grows as NAME.partial beside its place, and takes its name when every row has an answer.

A line is handed to the system whole as soon as its row is answered: a run that is killed loses none. Every few seconds
the file is synced, so a power cut loses only the rows of these seconds. A line that was half written is left out when
the next run goes on. Nothing else is kept: the lines say which rows they answer.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from mimo_gguf.batch.ids import IdTable
from mimo_gguf.batch.rows import ID_PREFIX, Run, read_done
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.file_lock import is_still, open_locked
from mimo_gguf.core.output_file import atomic_output, check_output, sync_folder
from mimo_gguf.core.paths import path_kind

_SYNC_EVERY_S: Final = 5.0
_BEGINNING: Final = b'{"id":"' + ID_PREFIX.encode()


@dataclass(slots=True)
class Earlier:
    """What earlier runs have answered.

    Attributes:
        answered: the rows: name -> digest.
        n_failed: those among them that failed.
        n_bytes: the bytes of their lines.
        is_beginning: whether these lines stand together at the beginning of their file.
    """

    answered: IdTable = field(default_factory=IdTable)
    n_failed: int = 0
    n_bytes: int = 0
    is_beginning: bool = True


class Output(Protocol):
    """Takes the lines of output."""

    earlier: Earlier

    def append(self, line: bytes) -> None:
        """Writes a line. Raises OutputError if that is impossible."""

    def finish(self) -> None:
        """Ends the output when every row has its line. Raises OutputError if that is impossible."""

    def close(self) -> None:
        """Leaves the output as it is, for another run to go on with."""


class PipeOutput:
    """A descriptor that belongs to somebody else, like that of stdout. Nothing of earlier runs is known."""

    def __init__(self, fd: int) -> None:
        """Writes to `fd`, which is not closed here."""
        self._fd = fd
        self.earlier = Earlier()

    def append(self, line: bytes) -> None:
        """Writes a line. Raises BrokenPipeError if the reader has gone away."""
        _write_all(self._fd, line)

    def finish(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Kept:
    """The lines of a file that stay: those of the run, each row once, without torn ones."""

    source: Path
    run: Run
    retry_errors: bool

    def lines(self, earlier: Earlier) -> Iterator[bytes]:
        """Yields the lines, and notes them in `earlier`.

        Raises:
            OutputError: the file cannot be read, is not an output of a batch, or is of another run.
        """
        try:
            with self.source.open("rb") as file:
                at = 0
                for number, line in enumerate(file):
                    if self._is_kept(line, number, earlier):
                        earlier.is_beginning &= at == earlier.n_bytes
                        earlier.n_bytes += len(line)
                        yield line
                    at += len(line)
        except OSError as error:
            raise OutputError(f"{self.source}: {error.strerror or error}", hint="give another -o") from None

    def _is_kept(self, line: bytes, number: int, earlier: Earlier) -> bool:
        done = read_done(line) if line.endswith(b"\n") else None
        if done is None:
            if number == 0 and not _may_be_torn(line):
                raise OutputError(
                    f"{self.source}: exists already, and is not of a batch", hint="give another -o, or --force"
                )
            return False
        if done.run != self.run.number:
            raise OutputError(
                f"{self.source}: was answered by another model, or with other settings",
                hint="give another -o, or start over with --force",
            )
        if (self.retry_errors and not done.ok) or earlier.answered.put(done.name, done.digest) is not None:
            return False
        earlier.n_failed += not done.ok
        return True


class OutputFile:
    """A file that only one process at a time adds to."""

    def __init__(self, path: Path, fd: int, kept: _Kept | None) -> None:
        """Takes over the open, locked partial file; use `open_output`. Raises OutputError as `open_output`."""
        self.path, self.partial = path, partial_path(path)
        self.earlier = Earlier()
        self._fd, self._kept = fd, kept
        self._has_begun = False
        self._synced = time.monotonic()
        if kept is not None:
            for _ in kept.lines(self.earlier):
                pass

    def append(self, line: bytes) -> None:
        """Writes a line. Raises OutputError if the disk is full."""
        self._begin()
        try:
            _write_all(self._fd, line)
            if time.monotonic() - self._synced > _SYNC_EVERY_S:
                os.fsync(self._fd)
                self._synced = time.monotonic()
        except OSError as error:
            raise OutputError(
                f"{self.partial}: {error.strerror or error}", hint="make room, and run the same command again"
            ) from None

    def finish(self) -> None:
        """Syncs the file and gives it its name; if nothing was added to a finished file, that stays."""
        if self._is_finished:
            self.close()
            return
        self._begin()
        try:
            os.fsync(self._fd)
            if not is_still(self.partial, self._fd):
                raise OutputError(f"{self.partial}: was removed while it was written", hint="run the command again")
            if os.name == "nt":  # Windows does not rename an open file
                self._release()
            self.partial.replace(self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror or error}", hint="run the same command again") from None
        sync_folder(self.path.parent)
        self._release()

    def close(self) -> None:
        """Releases the file; one in which nothing stands is removed."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if not os.fstat(self._fd).st_size and is_still(self.partial, self._fd):
                self.partial.unlink()
        self._release()

    @property
    def _is_finished(self) -> bool:
        return not self._has_begun and self._kept is not None and self._kept.source == self.path

    def _begin(self) -> None:
        """Brings what stays into the partial file, once. The lock moves with it."""
        if self._has_begun:
            return
        self._has_begun = True
        if self._kept is None or (self._kept.source == self.partial and self.earlier.is_beginning):
            os.ftruncate(self._fd, self.earlier.n_bytes)
        else:
            with atomic_output(self.partial) as file:  # whatever is killed here leaves the old file or the new one
                file.writelines(self._kept.lines(Earlier()))
            self._release()
            self._fd = _open_locked(self.path)

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def partial_path(path: Path) -> Path:
    """Where the output is until it is complete."""
    return path.with_name(f"{path.name}.partial")


def open_output(path: Path, run: Run, *, retry_errors: bool = False, force: bool = False) -> OutputFile:
    """Opens an output, and finds out what earlier runs left of it: in its place, or unfinished beside it.

    Args:
        run: the run that will answer; what another one has answered does not mix with it.
        retry_errors: forget the rows that failed, so that they are answered again.
        force: forget everything.

    Raises:
        OutputError: another process is writing it, it cannot be written, or what is there is not of this batch.
    """
    check_output(path, force=True)
    check_output(partial_path(path), force=True)
    fd = _open_locked(path)
    try:
        return OutputFile(path, fd, None if force else _kept(path, run, retry_errors=retry_errors))
    except BaseException:
        os.close(fd)
        raise


def read_earlier(path: Path, run: Run, *, retry_errors: bool = False, force: bool = False) -> Earlier:
    """What `open_output` with the same arguments would find, without changing anything. Raises OutputError as it."""
    check_output(path, force=True)
    earlier, kept = Earlier(), None if force else _kept(path, run, retry_errors=retry_errors)
    if kept is not None:
        for _ in kept.lines(earlier):
            pass
    return earlier


def _kept(path: Path, run: Run, *, retry_errors: bool) -> _Kept | None:
    """What earlier runs left; None if there is nothing."""
    for source in (partial_path(path), path):
        if path_kind(source) == "file" and source.stat().st_size:
            return _Kept(source, run, retry_errors)
    return None


def _may_be_torn(line: bytes) -> bool:
    """Whether the first line of a file may be a line of output that a power cut has torn: begun, zeros, or both."""
    begun = line.rstrip(b"\0\n") if b"\0" in line else line
    return begun.startswith(_BEGINNING) or _BEGINNING.startswith(begun) or begun == b"\n"


def _open_locked(path: Path) -> int:
    try:
        return open_locked(partial_path(path))
    except BlockingIOError:
        raise OutputError(f"{path}: another run is writing it", hint="wait for its end, or give another -o") from None
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}", hint="choose another place with -o") from None


def _write_all(fd: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(fd, rest) :]
