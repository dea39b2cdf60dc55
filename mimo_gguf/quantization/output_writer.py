"""Writes one output: its parts, its journal, and the steps by which it appears complete at the end.

plan, chunks ──> places ──┐
                          ├──> put(chunk) ──> partial files, a record in the journal
converted rows ───────────┘
records ──> finish ──> Finished (headers, checksums) ──> seal ──> publish ──> check_published
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import PAGESIZE

import numpy as np

from mimo_gguf.core.digests import CHUNK, JOURNAL
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.model_source import Bytes, ModelSource
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.units import listed
from mimo_gguf.quantization.checksums import Checksums, checksum_path
from mimo_gguf.quantization.chunks import Chunk
from mimo_gguf.quantization.journal import Journal, Record, open_journal
from mimo_gguf.quantization.output_digests import checksums_of, digest_output, fill_in
from mimo_gguf.quantization.output_state import can_resume, check_parts, journal_path, remove_partials, run_digest
from mimo_gguf.quantization.partial_file import PartialFile, partial_path, write_error, write_whole
from mimo_gguf.quantization.plan import OutputPlan, PartPlan


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one chunk's bytes in an output: the number of the part, and the offset in bytes."""

    part: int
    offset: int
    n_bytes: int


def place_chunks(plan: OutputPlan, chunks: Sequence[Chunk]) -> tuple[Place, ...]:
    """Finds the place of every chunk, in order."""
    starts = [(number, offset) for number, part in enumerate(plan.parts) for offset in part.layout.offsets]
    places = []
    for chunk in chunks:
        part, start = starts[chunk.tensor]
        row_bytes = plan.tensors[chunk.tensor].info.row_bytes
        places.append(Place(part, start + chunk.first * row_bytes, (chunk.last - chunk.first) * row_bytes))
    return tuple(places)


@dataclass(frozen=True, slots=True)
class Finished:
    """The final headers and checksums of an output whose chunks are all recorded.

    Attributes:
        headers: one per part, with the digests filled in.
        checksums: one per part.
    """

    source_digest: str
    headers: tuple[bytes, ...]
    checksums: tuple[Checksums, ...]


@dataclass(slots=True)
class OutputWriter:
    """Writes the chunks of one output. `put` and `holds` may be called from any thread.

    Attributes:
        run: see `run_digest`.
        places: one per chunk of the run.
        files: part number -> the part's file, for the parts that still have to be renamed. An earlier run that was
            killed while it renamed them leaves only some.
    """

    plan: OutputPlan
    run: str
    chunks: tuple[Chunk, ...]
    places: tuple[Place, ...]
    journal: Journal
    files: Mapping[int, PartialFile]

    @property
    def finished(self) -> bool:
        """Whether an earlier run wrote everything and only the renaming is left."""
        return self.journal.sealed

    @property
    def missing_bytes(self) -> int:
        """The disk space in bytes that this output still needs."""
        if self.finished:
            return 0
        there = sum(self.places[number].n_bytes for number in self.journal.done if number < len(self.places))
        return self.plan.n_bytes - there

    def is_recorded(self, number: int) -> bool:
        """Whether the journal has a record of this chunk."""
        return number in self.journal.done

    def holds(self, number: int, scratch: Bytes) -> bool:
        """Whether this chunk is recorded and its bytes, which are read into `scratch`, are intact."""
        record, place = self.journal.done.get(number), self.places[number]
        if record is None:
            return False
        return self.files[place.part].read_at(place.offset, scratch) and CHUNK.of(scratch) == record.output

    def put(self, number: int, data: Bytes, source_digest: bytes) -> None:
        """Writes a chunk and then records it.

        Raises:
            OutputError: the disk is full or failing, or another program truncated the file.
        """
        place = self.places[number]
        self.files[place.part].write_at(place.offset, data)
        try:
            self.journal.append(number, Record(source_digest, CHUNK.of(data)))
        except OSError as error:
            raise write_error(self.plan.path, error) from None

    def is_made_of(self, number: int, source_digest: bytes) -> bool:
        """Whether this chunk was made of source bytes with that digest."""
        record = self.journal.done.get(number)
        return record is not None and record.source == source_digest

    def put_file(self, file: int, digest: bytes) -> None:
        """Records that a file of the source was right, once all of its chunks are recorded.

        Raises:
            OutputError: the disk is full or failing.
        """
        try:
            self.journal.append_file(file, digest)
        except OSError as error:
            raise write_error(self.plan.path, error) from None

    def finish(self) -> Finished:
        """Makes the final headers and checksums, once every chunk is recorded."""
        digests = digest_output(self.plan, self.chunks, self.journal.done)
        layouts = fill_in(self.plan, digests)
        headers = tuple(layout.header for layout in layouts)
        return Finished(digests.source, headers, checksums_of(self.plan, layouts, digests, self.run))

    def seal(self, finished: Finished) -> None:
        """Writes the headers and makes everything durable.

        Raises:
            OutputError: the disk is full or failing, or another program meddled with the files.
        """
        for number, file in self.files.items():
            file.write_at(0, finished.headers[number])
            file.sync()
        self._check_holes()
        self.check_in_place()
        try:
            self.journal.seal()
        except OSError as error:
            raise write_error(self.plan.path, error) from None

    def _check_holes(self) -> None:
        """Checks the chunks that lie in holes: another program may have cut them off before a later one was written.

        A hole starts at a page; what was cut off may start in the page before.
        """
        for part, file in self.files.items():
            for first, last in file.holes():
                for number, place in enumerate(self.places):
                    if place.part == part and place.offset < last and place.offset + place.n_bytes > first - PAGESIZE:
                        self._check_written(number, file)

    def _check_written(self, number: int, file: PartialFile) -> None:
        if not self.holds(number, np.empty(self.places[number].n_bytes, np.uint8)):
            raise OutputError(
                f"{file.path}: was truncated by another program while this run was writing it",
                hint="run the same command again: it does what was lost once more",
            )

    def publish(self, finished: Finished, *, force: bool) -> None:
        """Renames the parts to their final names, each with its checksums beside it. It can be repeated after a crash.

        Raises:
            OutputError: a file of that name has appeared since the run began (without `force`); the disk is full or
                failing; another program meddled with the files.
        """
        for file in self.files.values():
            if path_kind(file.path) != "nothing" and not force:
                raise OutputError(
                    f"{file.path}: appeared while this run was writing its own",
                    hint="move it away and run the same command again: all is computed, only the name is missing",
                )
        for number, part in enumerate(self.plan.parts):
            write_whole(checksum_path(part.path), finished.checksums[number].as_bytes())
            if number in self.files:
                self.files[number].appear()

    def check_published(self) -> None:
        """Raises OutputError if a part or its checksums are not, or no longer, in their place."""
        for file in self.files.values():
            file.check_named()
        missing = [
            path.name
            for part in self.plan.parts
            for path in (part.path, checksum_path(part.path))
            if path_kind(path) != "file"
        ]
        if missing:
            raise OutputError(
                f"{self.plan.path.parent}: {listed(missing)} vanished while this run was giving names to its files",
                hint="run the same command again",
            )

    def check_in_place(self) -> None:
        """Raises OutputError if another program deleted, truncated or replaced the hidden files, or their folder."""
        for file in self.files.values():
            file.check_in_place()
        self.journal.check_in_place()

    def drain(self) -> None:
        """Sends what was written to the disk; see `PartialFile.drain`."""
        for file in self.files.values():
            file.drain()

    def close(self) -> None:
        """Closes all files and leaves them for the next run."""
        for file in self.files.values():
            file.close()
        self.journal.close()

    def abandon(self) -> None:
        """Removes everything written for this output."""
        for file in self.files.values():
            file.remove()
        self.journal.discard()


def open_output(
    plan: OutputPlan, source: ModelSource, chunks: tuple[Chunk, ...], kernels: Sequence[str], *, force: bool
) -> OutputWriter:
    """Opens an output for writing, and resumes what an interrupted run like this one left.

    Args:
        kernels: names of the kernels that will write it; with another kernel the output starts afresh.

    Raises:
        OutputError: the output exists (without `force`), another run is writing it, or the place cannot be written.
    """
    run = run_digest(plan, source)
    fingerprint = JOURNAL.hex(" ".join((run, *kernels)).encode())
    journal = open_journal(journal_path(plan), fingerprint, what=plan.path)
    try:
        if not can_resume(plan, journal, len(chunks)):
            journal.start_afresh(fingerprint)
            remove_partials(plan.path)
        if not journal.sealed:
            check_parts(plan, force=force)
        files = _open_parts(plan.parts, only_existing=journal.sealed)
    except BaseException:
        if not (journal.done or journal.sealed):
            remove_partials(plan.path)
            journal.discard()
        journal.close()
        raise
    return OutputWriter(plan, run, chunks, place_chunks(plan, chunks), journal, files)


def _open_parts(parts: Sequence[PartPlan], *, only_existing: bool) -> dict[int, PartialFile]:
    files: dict[int, PartialFile] = {}
    try:
        for number, part in enumerate(parts):
            if not only_existing or path_kind(partial_path(part.path)) == "file":
                files[number] = PartialFile.open(part.path, part.layout.n_bytes)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return files
