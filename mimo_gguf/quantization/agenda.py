"""The chunks that a run still has to do, in their order, and what is known about those that an earlier run has left.

A source on this machine is read in the order of the output. A source that is fetched while it is read comes in the
order of its files, and whether a file was right is known only at its end. So a chunk of such a file is *held* first:
its bytes are in place, but what they were made of is not checked. When the file comes again, after an interruption or
because its digest was wrong, the chunk's source is compared with the journal, and only what differs is done again.
Once the digest of a file was right, its chunks are *settled*.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

from mimo_gguf.core.arrival import Span, arrival_bytes
from mimo_gguf.core.errors import WeightsError
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.quantization.chunks import Chunk
from mimo_gguf.quantization.output_writer import OutputWriter


@dataclass(slots=True)
class Agenda:
    """What is to be done. All methods but `start` may be called from any thread.

    Attributes:
        held: for each output, the chunks whose bytes are in place.
        settled: for each output, those of them that are right.
        spared_bytes: of files that need not be fetched, because an earlier run has settled all of their chunks.
    """

    source: ModelSource
    chunks: tuple[Chunk, ...]
    writers: tuple[OutputWriter, ...]
    held: list[set[int]] = field(init=False)
    settled: list[set[int]] = field(init=False)
    spared_bytes: int = 0
    _recorded: Iterator[int] = field(init=False)
    _numbers: Iterator[int] = field(init=False)
    _by_file: dict[int, list[int]] = field(default_factory=dict)
    _left: dict[int, int] = field(default_factory=dict)  # file -> chunks that are not done, of all its arrivals
    _right: set[int] = field(default_factory=set)
    _faults: dict[int, WeightsError] = field(default_factory=dict)
    _stopped: bool = False
    _taking: threading.Lock = field(default_factory=threading.Lock)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.held, self.settled = [set() for _ in self.writers], [set() for _ in self.writers]
        recorded = {number for writer in self.writers if not writer.finished for number in writer.journal.done}
        self._recorded = iter(sorted(number for number in recorded if number < len(self.chunks)))

    def next_recorded(self) -> int | None:
        """The next chunk that an earlier run has recorded in some output; None after the last."""
        with self._taking:
            return None if self._stopped else next(self._recorded, None)

    def hold(self, output: int, number: int) -> bool:
        """Notes that a chunk is in its place; whether it is settled."""
        with self._changed:
            self.held[output].add(number)
            if self._is_checked(output, number):
                self.settled[output].add(number)
                return True
        return False

    def _is_checked(self, output: int, number: int) -> bool:
        """Whether the chunk's source needs no check, or an earlier run has checked it."""
        place, arrival = self.source.tensors[self.chunks[number].tensor].place, self.source.arrival
        if place is None or arrival is None:
            return True
        return self.writers[output].journal.has_file(place.file, arrival.files[place.file].digest)

    def start(self) -> None:
        """Plans the order, once all recorded chunks have been looked at, and begins to fetch what must be fetched."""
        arrival = self.source.arrival
        if arrival is not None:
            wanted = (self._span(number) for number in range(len(self.chunks)) if self.wanted(number))
            self._unsettle({span.file for span in wanted if span is not None})
        numbers = [number for number in range(len(self.chunks)) if self.wanted(number)]
        spans = {number: span for number in numbers if (span := self._span(number)) is not None}
        for number in sorted(spans, key=spans.__getitem__):
            self._by_file.setdefault(spans[number].file, []).append(number)
        self._left = {file: len(of_file) for file, of_file in self._by_file.items()}
        self._numbers = self._as_they_arrive([number for number in numbers if number not in spans])
        if arrival is not None:
            self.spared_bytes = arrival_bytes(arrival) - sum(arrival.files[file].n_bytes for file in self._by_file)
            arrival.start(list(self._by_file), list(spans.values()), self._on_checked)

    def _unsettle(self, files: Set[int]) -> None:
        """Takes back that these files are checked: they come again, because something made of them is missing."""
        for i, writer in enumerate(self.writers):
            for file in files & writer.journal.files.keys():
                writer.put_file(file, b"")
            self.settled[i] -= {n for n in self.settled[i] if (s := self._span(n)) is not None and s.file in files}

    def wanted(self, number: int) -> list[int]:
        """The outputs in which a chunk is not settled."""
        return [i for i, w in enumerate(self.writers) if not w.finished and number not in self.settled[i]]

    def next(self) -> int | None:
        """The next chunk to do, once its turn has come; None after the last.

        Raises:
            HubError: the source cannot be fetched.
        """
        with self._taking:
            return None if self._stopped else next(self._numbers, None)

    def done(self, number: int, fault: WeightsError | None = None) -> None:
        """Notes that a chunk is done in all outputs.

        Args:
            fault: an error in its weights, which counts only if its file turns out to have the right digest.
        """
        if (span := self._span(number)) is None:
            return
        with self._changed:
            self._left[span.file] -= 1
            if fault is not None:
                self._faults.setdefault(span.file, fault)
            self._changed.notify_all()
        self._settle(span.file)

    def stop(self) -> None:
        """Wakes whoever waits, and gives out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self.source.arrival is not None:
            self.source.arrival.stop()

    def _span(self, number: int) -> Span | None:
        chunk = self.chunks[number]
        place = self.source.tensors[chunk.tensor].place
        return None if place is None else place.span(chunk.first, chunk.last)

    def _as_they_arrive(self, others: Sequence[int]) -> Iterator[int]:
        """Gives the chunks in the order of their files, after the `others`, which lie on this machine."""
        yield from others
        if self.source.arrival is None:
            return
        for file in self.source.arrival.arrivals():
            self._await_workers(file)
            yield from self._by_file[file]

    def _await_workers(self, file: int) -> None:
        """Waits for slow workers, who may still be writing what they read in an earlier, wrong arrival of the file."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._left[file] == len(self._by_file[file]))
            self._faults.pop(file, None)

    def _on_checked(self, file: int, is_right: bool) -> None:
        with self._changed:
            if is_right:
                self._right.add(file)
            else:
                self._left[file] += len(self._by_file[file])
        self._settle(file)

    def _settle(self, file: int) -> None:
        """Records a file whose digest was right and whose chunks are all done.

        Raises:
            WeightsError: one of its chunks has weights that no output can hold.
        """
        arrival = self.source.arrival
        with self._changed:
            if arrival is None or file not in self._right or self._left[file]:
                return
            self._right.discard(file)
            if (fault := self._faults.get(file)) is not None:
                raise fault
            for writer in self.writers:
                if not writer.finished:
                    writer.put_file(file, arrival.files[file].digest)
