"""Fetches files block by block into a bounded window of memory, hashes them in order, and hands them to readers.

                 ┌ window: blocks [low, low + n) of the files, one after another ┐
    connections ──> fetched ──> hashed, in order ──> read by all who announced it ──> its memory is free again

Several connections fetch blocks at a time, in any order within the window. One thread hashes them in order. A reader
waits for its bytes. A block leaves the window once it is hashed and everything announced of it has been read. So the
network, the arithmetic and the disk are busy at the same time, and memory is bounded, whichever of them is the slowest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from mimo_gguf.conversion.remote.ranges import Patience, RangeReader, Stopped, wrong_twice
from mimo_gguf.conversion.remote.repository import RemoteFile
from mimo_gguf.core.arrival import Span
from mimo_gguf.core.digests import Hasher
from mimo_gguf.core.errors import HubError
from mimo_gguf.core.model_source import Bytes
from mimo_gguf.core.units import MIB

_JOIN_S: Final = 1.0  # a thread that waits for the network is left behind: it ends with the next bytes or a timeout


@dataclass(frozen=True, slots=True)
class Fetching:
    """How files are fetched.

    Attributes:
        window_bytes: memory for what has arrived and is not done with.
        block_bytes: bytes asked for in one request.
        connections: requests at a time.
        patience: what is done about failures.
    """

    window_bytes: int = 128 * MIB
    block_bytes: int = 8 * MIB
    connections: int = 4
    patience: Patience = field(default_factory=Patience)

    @property
    def n_blocks(self) -> int:
        """The number of blocks in the window: at least two, so that one arrives while another is read."""
        return max(2, self.window_bytes // self.block_bytes)


DEFAULT_FETCHING: Final = Fetching()


@dataclass(slots=True)
class _Block:
    """Bytes of a file in one of its arrivals; `unread` counts what is announced and not yet read."""

    file: int
    start: int
    n_bytes: int
    unread: int = 0
    is_fetched: bool = False
    is_hashed: bool = False


@dataclass(slots=True)
class FileStream:
    """The files of a checkpoint as they arrive; see `mimo_gguf.core.arrival.Arrival`."""

    files: Sequence[RemoteFile]
    fetching: Fetching = DEFAULT_FETCHING
    fetched_bytes: int = 0
    _blocks: list[_Block] = field(default_factory=list)
    _first: dict[int, int] = field(default_factory=dict)  # file -> number of the first block of its latest arrival
    _spans: dict[int, list[Span]] = field(default_factory=dict)
    _wrong: list[int] = field(default_factory=list)
    _differing: set[int] = field(default_factory=set)  # files whose header is not the one that was planned with
    _low: int = 0
    _next: int = 0
    _hashed: int = 0
    _error: BaseException | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _memory: Bytes = field(init=False)
    _threads: list[threading.Thread] = field(default_factory=list)
    _on_checked: Callable[[int, bool], None] = field(default=lambda file, is_right: None)

    def start(self, files: Collection[int], spans: Sequence[Span], on_checked: Callable[[int, bool], None]) -> None:
        """Begins to fetch these files, from which the spans will be read."""
        self._on_checked = on_checked
        for span in spans:
            self._spans.setdefault(span.file, []).append(span)
        for file in sorted(files):
            self._enqueue(file)
        self._memory = np.empty(self.fetching.n_blocks * self.fetching.block_bytes, np.uint8)
        reader = RangeReader(self.fetching.patience, self._stop.wait, self._count)
        self._threads = [
            threading.Thread(target=self._run, args=(self._fetch, reader), name=f"fetch-{i}", daemon=True)
            for i in range(self.fetching.connections)
        ]
        self._threads.append(threading.Thread(target=self._run, args=(self._hash,), name="fetch-hash", daemon=True))
        for thread in self._threads:
            thread.start()

    def arrivals(self) -> Iterator[int]:
        """The numbers of the files in the order in which they are to be read; those with a wrong digest come again."""
        files = sorted(self._first)
        yield from files
        if wrong := self._wait_until_all_is_checked():
            for file in wrong:
                self._enqueue(file)
            yield from wrong
        if wrong and (again := self._wait_until_all_is_checked()):
            raise wrong_twice(self.files[again[0]])

    def read_into(self, file: int, offset: int, out: Bytes) -> None:
        """Fills `out` (contiguous uint8, any shape) from byte `offset` of a file, once it has arrived.

        Raises:
            HubError: the network failed for good, or the run was stopped.
        """
        view, done = out.data.cast("B"), 0
        while done < len(view):
            ahead, skip = divmod(offset + done, self.fetching.block_bytes)
            number = self._first[file] + ahead
            block = self._blocks[number]
            n = min(len(view) - done, block.n_bytes - skip)
            if n > block.unread:
                raise ValueError(f"{self.files[file].name}: bytes from {offset + done} are read, but not announced")
            self._await_block(block)
            view[done : done + n] = self._view(number)[skip : skip + n]
            done += n
            with self._changed:
                block.unread -= n
                self._release()

    def stop(self) -> None:
        """Ends the fetching; whoever waits for bytes gets an error."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)

    # ---- blocks

    def _enqueue(self, file: int) -> None:
        size, n_bytes = self.fetching.block_bytes, self.files[file].n_bytes
        blocks = [_Block(file, start, min(size, n_bytes - start)) for start in range(0, n_bytes, size)]
        for span in self._spans.get(file, []):
            for number in range(span.start // size, -(-span.stop // size)):
                block = blocks[number]
                block.unread += min(span.stop, block.start + block.n_bytes) - max(span.start, block.start)
        with self._changed:
            self._first[file] = len(self._blocks)
            self._blocks += blocks
            self._changed.notify_all()

    def _view(self, number: int) -> memoryview:
        """The memory of a block of the window."""
        start = number % self.fetching.n_blocks * self.fetching.block_bytes
        return self._memory.data[start : start + self._blocks[number].n_bytes]

    def _release(self) -> None:
        """Frees the memory of blocks that are done with, the lowest first; `_changed` is held."""
        before = self._low
        while (
            self._low < len(self._blocks) and self._blocks[self._low].is_hashed and not self._blocks[self._low].unread
        ):
            self._low += 1
        if self._low != before:
            self._changed.notify_all()

    def _await(self, is_true: Callable[[], bool]) -> None:
        """Waits for what another thread does; raises the error of any thread, or Stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._stop.is_set() or is_true())
            if self._error is not None:
                raise self._error
            if self._stop.is_set():
                raise Stopped("stopped")

    def _await_block(self, block: _Block) -> None:
        self._await(lambda: block.is_fetched)

    def _wait_until_all_is_checked(self) -> list[int]:
        """Waits until every block was hashed and read; the files with a wrong digest."""
        self._await(lambda: self._low == len(self._blocks))
        wrong, self._wrong = self._wrong, []
        return wrong

    # ---- threads

    def _run(self, work: Callable[..., None], *arguments: RangeReader) -> None:
        try:
            work(*arguments)
        except Stopped:
            pass
        except BaseException as error:
            self._stop.set()
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _count(self, n_bytes: int) -> None:
        if self._stop.is_set():
            raise Stopped("stopped")
        with self._changed:
            self.fetched_bytes += n_bytes

    def _fetch(self, reader: RangeReader) -> None:
        """Fetches one block of the window after another."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stop.is_set() or self._next < self._end_of_window())
                if self._stop.is_set():
                    return
                number = self._next
                self._next += 1
            block = self._blocks[number]
            reader.fill(self.files[block.file], block.start, self._view(number))
            with self._changed:
                block.is_fetched = True
                self._changed.notify_all()

    def _end_of_window(self) -> int:
        return min(len(self._blocks), self._low + self.fetching.n_blocks)

    def _hash(self) -> None:
        """Hashes the blocks in order, and tells about each file at its end."""
        hasher: Hasher | None = None
        while True:
            self._await(lambda: self._hashed < len(self._blocks) and self._blocks[self._hashed].is_fetched)
            number, block = self._hashed, self._blocks[self._hashed]
            file, data = self.files[block.file], self._view(self._hashed)
            hasher = file.start_digest() if hasher is None or block.start == 0 else hasher
            hasher.update(data)
            is_same_head = data[: max(0, len(file.head) - block.start)] == file.head[block.start :][: block.n_bytes]
            if not is_same_head:
                self._differing.add(block.file)
            if block.start + block.n_bytes == file.n_bytes:
                self._judge(block.file, hasher.digest())
            with self._changed:
                block.is_hashed = True
                self._hashed = number + 1
                self._release()

    def _judge(self, number: int, digest: bytes) -> None:
        file, is_right = self.files[number], digest == self.files[number].digest
        differs = number in self._differing
        self._differing.discard(number)
        if is_right and differs:
            raise HubError(f"{file.name}: its header arrived damaged when the run was planned", hint="run it again")
        if not is_right:
            self._wrong.append(number)
        self._on_checked(number, is_right)


@dataclass(frozen=True, slots=True)
class StreamedFile:
    """One file of a stream, read at offsets."""

    stream: FileStream
    number: int

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fills `out` from byte `offset`, once it has arrived; see `FileStream.read_into`."""
        self.stream.read_into(self.number, offset, out)
