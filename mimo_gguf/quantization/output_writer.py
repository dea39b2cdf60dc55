"""One output while it is made: its parts, its journal, and the steps by which it appears, complete, at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.gguf_header import GgufLayout, lay_out
from mimo_gguf.core.model_source import Bytes, Metadata, ModelSource, string
from mimo_gguf.core.paths import path_kind
from mimo_gguf.quantization.checksums import Checksums, TensorSum, checksum_path
from mimo_gguf.quantization.chunks import Chunk, chunk_rows, digest_of, digest_of_digests
from mimo_gguf.quantization.journal import Journal, open_journal
from mimo_gguf.quantization.output_state import can_resume, check_parts, journal_path, remove_partials, run_digest
from mimo_gguf.quantization.partial_file import PartialFile, appear, partial_path, write_error, write_whole
from mimo_gguf.quantization.plan import SOURCE_DIGEST, TENSORS_DIGEST, OutputPlan, PartPlan


@dataclass(slots=True)
class OutputWriter:
    """Writes the chunks of one output. `put` and `holds` may be called from any thread.

    Attributes:
        places: for every tensor the part it lies in and the byte where its data starts there.
        run: see `run_digest`.
    """

    plan: OutputPlan
    run: str
    journal: Journal
    files: tuple[PartialFile, ...]
    places: tuple[tuple[int, int], ...]
    _layouts: list[GgufLayout] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether an earlier run wrote everything and only the renaming is left."""
        return self.journal.sealed

    def chunk_bytes(self, chunk: Chunk) -> int:
        return (chunk.last - chunk.first) * self.plan.tensors[chunk.tensor].info.row_bytes

    def is_recorded(self, number: int) -> bool:
        return number in self.journal.done

    def holds(self, number: int, chunk: Chunk, scratch: Bytes) -> bool:
        """Whether this chunk was written by an earlier run and is intact; reads it into `scratch` to see."""
        record = self.journal.done.get(number)
        if record is None:
            return False
        file, offset = self._place(chunk)
        return file.read_at(offset, scratch) and digest_of(scratch) == record[1]

    def put(self, number: int, chunk: Chunk, data: Bytes, source_digest: bytes) -> None:
        """Writes a chunk and then records it.

        Raises:
            OutputError: the disk is full or failing.
        """
        file, offset = self._place(chunk)
        file.write_at(offset, data)
        try:
            self.journal.append(number, source_digest, digest_of(data))
        except OSError as error:
            raise write_error(self.plan.path, error) from None

    def _place(self, chunk: Chunk) -> tuple[PartialFile, int]:
        part, start = self.places[chunk.tensor]
        return self.files[part], start + chunk.first * self.plan.tensors[chunk.tensor].info.row_bytes

    def seal(self, chunks: Sequence[Chunk]) -> None:
        """Writes the headers, now that all digests are known, and makes everything durable.

        Raises:
            OutputError: the disk is full or failing.
        """
        for file, layout in zip(self.files, self._final_layouts(chunks), strict=True):
            file.write_at(0, layout.header)
            file.sync()
        try:
            self.journal.seal()
        except OSError as error:
            raise write_error(self.plan.path, error) from None

    def publish(self, chunks: Sequence[Chunk], *, force: bool) -> None:
        """Gives the parts their names, each with its checksums beside it. Can be repeated after a crash.

        Raises:
            OutputError: a file of that name has appeared since the run began (without `force`); the disk is full or
                failing.
        """
        self.close_files()
        waiting = [part.path for part in self.plan.parts if partial_path(part.path).exists()]
        for path in waiting:
            if path_kind(path) != "nothing" and not force:
                raise OutputError(
                    f"{path}: appeared while this run was writing its own",
                    hint="move it away and run the same command again: all is computed, only the name is missing",
                )
        sums = self._tensor_sums(chunks)
        for part, layout in zip(self.plan.parts, self._final_layouts(chunks), strict=True):
            checksums = Checksums.of(part.path.name, layout, sums[part.first : part.last], self.run)
            write_whole(checksum_path(part.path), checksums.as_bytes())
            if part.path in waiting:
                appear(part.path)

    def drain(self) -> None:
        for file in self.files:
            file.drain()

    def close_files(self) -> None:
        for file in self.files:
            file.close()

    def close(self) -> None:
        self.close_files()
        self.journal.close()

    def abandon(self) -> None:
        """Removes everything written for this output."""
        self.close_files()
        for part in self.plan.parts:
            partial_path(part.path).unlink(missing_ok=True)
        self.journal.discard()

    def _final_layouts(self, chunks: Sequence[Chunk]) -> list[GgufLayout]:
        """The parts' layouts with the digests filled in; made once."""
        if self._layouts:
            return self._layouts
        digests = {
            SOURCE_DIGEST: self.source_digest(chunks),
            TENSORS_DIGEST: digest_of_digests(s.digest for s in self._tensor_sums(chunks)).hex(),
        }
        for part in self.plan.parts:
            filled: Metadata = {
                key: string(digests[key]) if key in digests else value for key, value in part.metadata.items()
            }
            self._layouts.append(lay_out(filled, [tensor.info for tensor in self.plan.tensors[part.first : part.last]]))
            assert self._layouts[-1].offsets == part.layout.offsets  # digests have a fixed width
        return self._layouts

    def source_digest(self, chunks: Sequence[Chunk]) -> str:
        """What the source is: names, shapes, types and contents of its tensors, whatever files they came from."""
        digests = _by_tensor(chunks, [self.journal.done[number][0] for number in range(len(chunks))])
        lines = (
            f"{tensor.source.info.name} {tensor.source.info.shape} {tensor.source.info.ggml_type.name} "
            f"{digest_of_digests(digests.get(number, [])).hex()}\n"
            for number, tensor in enumerate(self.plan.tensors)
        )
        return digest_of("".join(lines).encode()).hex()

    def _tensor_sums(self, chunks: Sequence[Chunk]) -> list[TensorSum]:
        digests = _by_tensor(chunks, [self.journal.done[number][1] for number in range(len(chunks))])
        return [
            TensorSum(
                name=tensor.info.name,
                offset=self.places[number][1],
                n_bytes=tensor.info.n_bytes,
                chunk_bytes=chunk_rows(tensor.info, self.plan.chunk_weights) * tensor.info.row_bytes,
                digest=digest_of_digests(digests.get(number, [])),
            )
            for number, tensor in enumerate(self.plan.tensors)
        ]


def _by_tensor(chunks: Sequence[Chunk], digests: Sequence[bytes]) -> dict[int, list[bytes]]:
    grouped: dict[int, list[bytes]] = {}
    for chunk, digest in zip(chunks, digests, strict=True):
        grouped.setdefault(chunk.tensor, []).append(digest)
    return grouped


def open_output(plan: OutputPlan, source: ModelSource, kernels: Sequence[str], *, force: bool) -> OutputWriter:
    """Opens an output for writing, taking up what an interrupted run like this one left.

    Args:
        kernels: names of what will write it; another kernel starts afresh.

    Raises:
        OutputError: the output exists (without `force`), another run is writing it, or the place cannot be written.
    """
    run = run_digest(plan, source)
    fingerprint = hashlib.sha256(" ".join((run, *kernels)).encode()).hexdigest()
    journal = open_journal(journal_path(plan), fingerprint, what=plan.path)
    try:
        if not can_resume(plan, journal):
            journal.start_afresh(fingerprint)
            remove_partials(plan.path)
        if not journal.sealed:
            check_parts(plan, force=force)
        files = () if journal.sealed else _open_parts(plan.parts)
    except BaseException:
        if not (journal.done or journal.sealed):
            remove_partials(plan.path)
            journal.discard()
        journal.close()
        raise
    places = tuple((number, offset) for number, part in enumerate(plan.parts) for offset in part.layout.offsets)
    return OutputWriter(plan, run, journal, files, places)


def _open_parts(parts: Sequence[PartPlan]) -> tuple[PartialFile, ...]:
    files: list[PartialFile] = []
    try:
        for part in parts:
            files.append(PartialFile.open(part.path, part.layout.n_bytes))
    except BaseException:
        for file in files:
            file.close()
        raise
    return tuple(files)


def missing_bytes(writer: OutputWriter, chunks: Sequence[Chunk]) -> int:
    """Disk space this output still needs."""
    if writer.finished:
        return 0
    there = sum(writer.chunk_bytes(chunks[number]) for number in writer.journal.done if number < len(chunks))
    return writer.plan.n_bytes - there
