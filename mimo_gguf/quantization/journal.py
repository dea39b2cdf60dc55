"""The journal of an unfinished output: which chunks are done, with their digests. Also the lock on the output.

It is one hidden file beside the partial output. It starts with a fingerprint of everything that decides the output's
bytes. Then comes one small record per finished chunk, appended after the chunk's bytes were written. A record counts
only if the chunk, read back, has the digest that it gives. So nothing needs to be synced during the run, and resuming
is right after any crash or power cut. Only the last record is synced.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from mimo_gguf.core.digests import RECORD
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.file_lock import is_still, open_locked
from mimo_gguf.core.paths import path_kind

_MAGIC: Final = b"mimo-gguf journal 1\n"
_DIGEST_BYTES: Final = 16
_CHECK_BYTES: Final = 8
_RECORD_BYTES: Final = 4 + 2 * _DIGEST_BYTES + _CHECK_BYTES
_FILE: Final = 0x80000000  # added to the number of a source's file, in place of a chunk number: its digest was right
_SEALED: Final = 0xFFFFFFFF  # in place of a chunk number: all bytes, the header included, are written and synced


class Record(NamedTuple):
    """A finished chunk: the digest of its bytes in the source, and of its bytes in the output."""

    source: bytes
    output: bytes


@dataclass(slots=True)
class Journal:
    """An open, locked journal.

    Attributes:
        done: chunk number -> its record.
        files: number of a source's file -> its digest, which all bytes had that the recorded chunks were made of.
        sealed: whether the output is complete and has only to be renamed.
        replaced: whether an earlier run had left a journal with another fingerprint.
    """

    path: Path
    done: dict[int, Record] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)
    sealed: bool = False
    replaced: bool = False
    _fd: int = -1

    def append(self, chunk: int, record: Record) -> None:
        """Records a finished chunk. Several threads may call it: a record is one write."""
        self.done[chunk] = record
        os.write(self._fd, _record_bytes(chunk, record))

    def append_file(self, file: int, digest: bytes) -> None:
        """Records that a file of the source had its right digest, and that all of its chunks are recorded."""
        padded = digest.ljust(2 * _DIGEST_BYTES, b"\0")
        self.files[file] = padded
        os.write(self._fd, _record_bytes(_FILE + file, Record(padded[:_DIGEST_BYTES], padded[_DIGEST_BYTES:])))

    def has_file(self, file: int, digest: bytes) -> bool:
        """Whether `append_file` has recorded this."""
        return self.files.get(file) == digest.ljust(2 * _DIGEST_BYTES, b"\0")

    def seal(self) -> None:
        """Records durably that everything is written and synced: only renaming follows."""
        os.write(self._fd, _record_bytes(_SEALED, Record(bytes(_DIGEST_BYTES), bytes(_DIGEST_BYTES))))
        os.fsync(self._fd)
        self.sealed = True

    def start_afresh(self, fingerprint: str) -> None:
        """Forgets everything and starts over for the output with this fingerprint."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.write(self._fd, _head(fingerprint))
        self.done.clear()
        self.files.clear()
        self.sealed = False

    def check_in_place(self) -> None:
        """Raises OutputError if another program deleted or replaced the file, because the lock is then useless."""
        if not is_still(self.path, self._fd):
            raise OutputError(
                f"{self.path}: was deleted or replaced while this run was working",
                hint="leave the hidden files beside the output alone, and run the same command again",
            )

    def discard(self) -> None:
        """Closes the journal and removes it, unless another program has put a file in its place."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if is_still(self.path, self._fd):
                if os.name == "nt":  # Windows does not remove open files
                    self.close()
                self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Releases the lock and leaves the journal for the next run."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_journal(path: Path, fingerprint: str, *, what: Path) -> Journal:
    """Opens and locks the journal at `path`, and reads what an earlier run with the same fingerprint left.

    Args:
        what: the output, for the message if another run is writing it.

    Raises:
        OutputError: another run holds the lock, or the file cannot be opened.
    """
    if path_kind(path) == "special":  # opening a pipe would wait for its other end
        raise OutputError(f"{path}: is a device or pipe, not a file", hint="remove it, or choose another place with -o")
    try:
        fd = open_locked(path)
    except BlockingIOError:
        raise OutputError(
            f"{what}: another run is writing it", hint="wait for it to end, or choose another name with -o"
        ) from None
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}", hint="choose another place with -o") from None
    journal = Journal(path, _fd=fd)
    data = _read_all(fd)
    if data.startswith(_head(fingerprint)):
        _read_records(journal, data, len(_head(fingerprint)))
    else:
        journal.replaced = len(data) > len(_head(fingerprint))
        journal.start_afresh(fingerprint)
    return journal


def _head(fingerprint: str) -> bytes:
    return _MAGIC + fingerprint.encode() + b"\n"


def _record_bytes(chunk: int, record: Record) -> bytes:
    body = chunk.to_bytes(4, "little") + record.source + record.output
    return body + RECORD.of(body)


def _read_records(journal: Journal, data: bytes, first: int) -> None:
    """Reads the records up to the first torn one, and cuts the file off there."""
    end = first
    for at in range(first, len(data) - _RECORD_BYTES + 1, _RECORD_BYTES):
        body, check = data[at : at + _RECORD_BYTES - _CHECK_BYTES], data[at + _RECORD_BYTES - _CHECK_BYTES :][:8]
        if RECORD.of(body) != check:
            break
        end = at + _RECORD_BYTES
        chunk = int.from_bytes(body[:4], "little")
        if chunk == _SEALED:
            journal.sealed = True
        elif chunk >= _FILE:
            journal.files[chunk - _FILE] = body[4:]
        else:
            journal.done[chunk] = Record(body[4 : 4 + _DIGEST_BYTES], body[4 + _DIGEST_BYTES :])
    os.ftruncate(journal._fd, end)
    os.lseek(journal._fd, end, os.SEEK_SET)


def _read_all(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)
