"""Reads a file once, in its own order: many threads look at its tensors, and one at a time feeds the hash of the whole.

SHA-256 can only be computed from a file's first byte to its last. So each thread reads the next piece of the file,
looks at it, and then waits for its turn to hash it. The other threads go on reading and looking meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.data_file import DataFile, FileBuffer
from mimo_gguf.core.digests import FILE, Hasher
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.model_source import Bytes, TensorInfo
from mimo_gguf.core.progress import Job, Progress

_PIECE_BYTES: Final = 4 << 20  # of what belongs to no tensor
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """The place of a tensor's bytes in a file, and the size of the pieces in which they are looked at.

    Attributes:
        info: what the tensor is; None if only its place is known.
    """

    name: str
    offset: int
    n_bytes: int
    chunk_bytes: int
    info: TensorInfo | None = None


Look = Callable[[TensorBytes, Bytes], Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a file's bytes: those of the tensor with number `tensor`, or of no tensor (None)."""

    tensor: int | None
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class FileRead:
    """What one pass found.

    Attributes:
        sha256: hex digest of the whole file.
        seen: for each tensor what `look` returned for each of its pieces, in order.
        dirty: offsets of pieces after the header that belong to no tensor and are not all zeros.
    """

    path: Path
    sha256: str
    seen: tuple[tuple[Any, ...], ...]
    dirty: tuple[int, ...]


def cut_file(tensors: Sequence[TensorBytes], n_bytes: int) -> Iterator[Piece]:
    """Cuts a file of `n_bytes` into pieces, from its start to its end.

    Args:
        tensors: in the order of their places, which do not overlap; what lies beyond the end is left out.
    """
    end = 0
    for number, tensor in enumerate(tensors):
        yield from _cut(None, end, min(tensor.offset, n_bytes), _PIECE_BYTES)
        end = min(tensor.offset + tensor.n_bytes, n_bytes)
        yield from _cut(number, tensor.offset, end, tensor.chunk_bytes)
    yield from _cut(None, end, n_bytes, _PIECE_BYTES)


def _cut(tensor: int | None, first: int, last: int, step: int) -> Iterator[Piece]:
    for offset in range(first, last, max(1, step)):
        yield Piece(tensor, offset, min(step, last - offset))


def read_file(
    path: Path, tensors: Sequence[TensorBytes], header_bytes: int, look: Look, progress: Progress, n_threads: int
) -> FileRead:
    """Reads the file at `path` once, from its start to its end.

    Args:
        look: called from several threads with a tensor and one piece of its bytes.

    Raises:
        GgufError: the file ends while it is read.
        OSError: the file cannot be read.
    """
    file = DataFile(path, GgufError)
    pieces = tuple(cut_file(tensors, file.stamp.size_bytes))
    run = _Pass(file, tensors, pieces, look)
    progress.start([Job(path.name, file.stamp.size_bytes)])
    pool = ThreadPoolExecutor(n_threads)
    try:
        workers = [pool.submit(run.work) for _ in range(n_threads)]
        while wait(workers, timeout=_POLL_S).not_done:
            progress.update([run.n_read], [0])
        for worker in workers:
            worker.result()
    finally:
        run.stop()
        pool.shutdown()
        progress.finish()
        file.close()
    return FileRead(path, run.hasher.hexdigest(), run.seen(), run.dirty(header_bytes))


@dataclass(slots=True)
class _Pass:
    file: DataFile
    tensors: Sequence[TensorBytes]
    pieces: tuple[Piece, ...]
    look: Look
    hasher: Hasher = field(default_factory=FILE.start)
    n_read: int = 0
    _found: dict[int, Any] = field(default_factory=dict)
    _taken: int = 0
    _turn: int = 0
    _stopped: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def work(self) -> None:
        """Reads, looks at and hashes one piece after another, until none is left or another thread has failed."""
        buffer = FileBuffer(max((piece.n_bytes for piece in self.pieces), default=0))
        try:
            while (number := self._next_piece()) is not None:
                piece = self.pieces[number]
                data = buffer.at(piece.offset, piece.n_bytes)
                self.file.read_into(piece.offset, data)
                self._found[number] = self._look_at(piece, data)
                self._hash(number, data)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Makes every thread stop, even one that waits for its turn."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def seen(self) -> tuple[tuple[Any, ...], ...]:
        """The results of `look`, for each tensor in the order of its pieces."""
        found: list[list[Any]] = [[] for _ in self.tensors]
        for number, piece in enumerate(self.pieces):
            if piece.tensor is not None:
                found[piece.tensor].append(self._found[number])
        return tuple(map(tuple, found))

    def dirty(self, header_bytes: int) -> tuple[int, ...]:
        """The offsets of pieces after the header that belong to no tensor and are not all zeros."""
        return tuple(
            piece.offset
            for number, piece in enumerate(self.pieces)
            if piece.tensor is None and piece.offset >= header_bytes and self._found[number]
        )

    def _look_at(self, piece: Piece, data: Bytes) -> Any:
        return bool(data.any()) if piece.tensor is None else self.look(self.tensors[piece.tensor], data)

    def _next_piece(self) -> int | None:
        with self._changed:
            if self._stopped or self._taken == len(self.pieces):
                return None
            self._taken += 1
            return self._taken - 1

    def _hash(self, number: int, data: Bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number or self._stopped)
            if self._stopped:
                return
        self.hasher.update(data)  # no other thread has its turn
        with self._changed:
            self._turn += 1
            self.n_read += data.size
            self._changed.notify_all()
