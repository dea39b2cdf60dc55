"""Whether a GGUF file is still what was written: any flipped bit, missing end or appended byte is found.

Three grades, the best that the file allows. With the checksums beside it (`<file>.sums.json`) every byte is covered.
Without them, a file made by this tool carries a digest over all its tensors in its metadata: damage is found, but not
where. For any other file: is it well formed, of the right length, and are all floats and block scales finite.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.data_file import DataFile, FileBuffer
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_file import GgufFile, GgufPart, StoredTensor, read_gguf
from mimo_gguf.core.machine import available_cores
from mimo_gguf.core.model_source import Bytes, TensorInfo
from mimo_gguf.core.progress import Job, Progress, Silence
from mimo_gguf.quantization.block_scales import first_bad_row
from mimo_gguf.quantization.checksums import Checksums, checksum_path, read_checksums
from mimo_gguf.quantization.chunks import CHUNK_WEIGHTS, chunk_rows, digest_of, digest_of_digests
from mimo_gguf.quantization.plan import DIGEST_CHUNK, TENSORS_DIGEST

CHECKSUMS: Final = "checksums"
EMBEDDED: Final = "embedded digest"
STRUCTURE: Final = "structure only"
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked and what was found.

    Attributes:
        method: CHECKSUMS, EMBEDDED or STRUCTURE.
        problems: one line each; empty where the file is intact as far as the method can tell.
        without_checksums: the parts that have none beside them.
    """

    paths: tuple[Path, ...]
    method: str
    n_tensors: int
    n_bytes: int
    problems: tuple[str, ...]
    without_checksums: tuple[Path, ...] = ()

    @property
    def intact(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The verification as a JSON document."""
        return {
            "paths": [str(path) for path in self.paths],
            "intact": self.intact,
            "method": self.method,
            "n_tensors": self.n_tensors,
            "n_bytes": self.n_bytes,
            "problems": list(self.problems),
            "without_checksums": [str(path) for path in self.without_checksums],
        }


def verify_gguf(path: Path, progress: Progress | None = None, n_threads: int | None = None) -> Verification:
    """Reads the whole of the file at `path` (all parts of a split one) and compares it with what was written.

    Raises:
        GgufError: no such file, one so damaged that its header cannot be read, or a failing disk; or checksums that
            were changed.
    """
    try:
        return _verify(path, progress or Silence(), n_threads or available_cores())
    except OSError as error:
        where = error.filename or path
        raise GgufError(f"{where}: cannot be read: {error.strerror or error}", hint="check the disk") from None


def _verify(path: Path, progress: Progress, n_threads: int) -> Verification:
    sums = _sums_beside(path)
    try:
        model = read_gguf(path)
    except GgufError as error:
        if sums is None or not path.is_file():
            raise
        return Verification((path,), CHECKSUMS, len(sums.tensors), path.stat().st_size, (error.message,))
    readers = _Readers(progress, n_threads)
    beside = {part.path: _sums_beside(part.path) for part in model.parts}
    all_sums = [part_sums for part_sums in beside.values() if part_sums is not None]
    if len(all_sums) == len(model.parts):
        method, problems = CHECKSUMS, _by_checksums(model, all_sums, readers)
    elif TENSORS_DIGEST in model.metadata and DIGEST_CHUNK in model.metadata:
        method, problems = EMBEDDED, _by_embedded_digest(model, beside, readers)
    else:
        method, problems = STRUCTURE, _by_structure(model, readers)
    return Verification(
        paths=tuple(part.path for part in model.parts),
        method=method,
        n_tensors=sum(len(part.tensors) for part in model.parts),
        n_bytes=sum(part.path.stat().st_size for part in model.parts),
        problems=tuple(problems),
        without_checksums=tuple(part_path for part_path, part_sums in beside.items() if part_sums is None),
    )


def _sums_beside(path: Path) -> Checksums | None:
    return read_checksums(checksum_path(path)) if checksum_path(path).is_file() else None


# ---- the three methods


def _by_checksums(model: GgufFile, all_sums: Sequence[Checksums], readers: _Readers) -> list[str]:
    """The stored places, not the file's own table, say where to look: a changed table cannot hide anything."""
    stretches = [
        _Stretch(part.path, tensor.name, tensor.offset, tensor.n_bytes, tensor.chunk_bytes)
        for part, sums in zip(model.parts, all_sums, strict=True)
        for tensor in sums.tensors
    ]
    problems = [line for part, sums in zip(model.parts, all_sums, strict=True) for line in _check_frame(part, sums)]
    expected = [tensor.digest for sums in all_sums for tensor in sums.tensors]
    found = readers.map(_digest_stretch, stretches)
    return problems + [
        f"{stretch.path.name}: the data of {stretch.name} changed"
        for stretch, there, wanted in zip(stretches, found, expected, strict=True)
        if there != wanted
    ]


def _check_frame(part: GgufPart, sums: Checksums) -> list[str]:
    """Everything that is not tensor data: length, header, and the zeros between tensors."""
    problems = _check_length(part.path, sums.n_bytes) + _check_header(part.path, sums)
    ends = [tensor.offset + tensor.n_bytes for tensor in sums.tensors]
    starts = [*(tensor.offset for tensor in sums.tensors), sums.n_bytes][1:]
    return problems + _check_padding(part.path, ends, starts)


def _check_header(path: Path, sums: Checksums) -> list[str]:
    with path.open("rb") as file:
        intact = digest_of(file.read(sums.header_bytes)) == sums.header_digest
    return [] if intact else [f"{path.name}: the header changed (metadata or tensor table)"]


def _by_embedded_digest(model: GgufFile, beside: Mapping[Path, Checksums | None], readers: _Readers) -> list[str]:
    """By the one digest over all tensors; the checksums of parts that have them tell more."""
    chunk_weights = int(model.value(DIGEST_CHUNK))
    stretches = [
        _Stretch.of(part, tensor, chunk_rows(tensor.info, chunk_weights) * tensor.info.row_bytes)
        for part, tensor in model.tensors()
    ]
    problems = [line for part in model.parts for line in _check_gaps(part)]
    known: dict[tuple[Path, str], bytes] = {}
    for path, sums in beside.items():
        if sums is not None:
            problems += _check_header(path, sums)
            known |= {(path, tensor.name): tensor.digest for tensor in sums.tensors}
    found = readers.map(_digest_stretch, stretches)
    if digest_of_digests(found).hex() == model.value(TENSORS_DIGEST):
        return problems
    changed = [
        f"{stretch.path.name}: the data of {stretch.name} changed"
        for stretch, there in zip(stretches, found, strict=True)
        if known.get((stretch.path, stretch.name), there) != there
    ]
    unknown = f"{model.path.name}: the data of a tensor changed (without checksums beside it: unknown which)"
    return problems + (changed or [unknown])


def _by_structure(model: GgufFile, readers: _Readers) -> list[str]:
    stored = list(model.tensors())
    stretches = [
        _Stretch.of(part, tensor, chunk_rows(tensor.info, CHUNK_WEIGHTS) * tensor.info.row_bytes)
        for part, tensor in stored
    ]
    looks = [partial(_find_bad_row, info=tensor.info) for _, tensor in stored]
    rows = readers.map_each(looks, stretches)
    return [line for part in model.parts for line in _check_gaps(part)] + [
        f"{stretch.path.name}: {stretch.name}: row {row} holds Inf or NaN"
        for stretch, row in zip(stretches, rows, strict=True)
        if row is not None
    ]


def _check_gaps(part: GgufPart) -> list[str]:
    """Length, and zeros between tensors, by the file's own table."""
    ends = [tensor.offset + tensor.info.n_bytes for tensor in part.tensors]
    size = -(-max(ends, default=part.data_offset) // part.alignment) * part.alignment
    starts = [*(tensor.offset for tensor in part.tensors), size][1:]
    return _check_length(part.path, size) + _check_padding(part.path, ends, starts)


def _check_length(path: Path, expected: int) -> list[str]:
    size = path.stat().st_size
    if size == expected:
        return []
    what = f"{size - expected} bytes were appended" if size > expected else f"{expected - size} bytes are missing"
    return [f"{path.name}: {what}"]


def _check_padding(path: Path, ends: Sequence[int], starts: Sequence[int]) -> list[str]:
    with path.open("rb") as file:
        for end, start in zip(ends, starts, strict=True):
            file.seek(end)
            if any(file.read(max(0, start - end))):
                return [f"{path.name}: bytes between tensors changed (at {end})"]
    return []


# ---- reading


@dataclass(frozen=True, slots=True)
class _Stretch:
    """One tensor's bytes in a file, to be read chunk by chunk."""

    path: Path
    name: str
    offset: int
    n_bytes: int
    chunk_bytes: int

    @classmethod
    def of(cls, part: GgufPart, tensor: StoredTensor, chunk_bytes: int) -> _Stretch:
        return cls(part.path, tensor.info.name, tensor.offset, tensor.info.n_bytes, chunk_bytes)


Look = Callable[[Iterator[Bytes]], Any]


def _digest_stretch(chunks: Iterator[Bytes]) -> bytes:
    return digest_of_digests(digest_of(chunk) for chunk in chunks)


def _find_bad_row(chunks: Iterator[Bytes], info: TensorInfo) -> int | None:
    first = 0
    for chunk in chunks:
        rows = chunk.reshape(-1, info.row_bytes)
        if (bad := first_bad_row(rows, info.ggml_type)) is not None:
            return first + bad
        first += len(rows)
    return None


@dataclass(slots=True)
class _Readers:
    """Reads stretches of files on several threads, telling the progress."""

    progress: Progress
    n_threads: int

    def map(self, look: Look, stretches: Sequence[_Stretch]) -> list[Any]:
        return self.map_each([look] * len(stretches), stretches)

    def map_each(self, looks: Sequence[Look], stretches: Sequence[_Stretch]) -> list[Any]:
        """What each look finds in its stretch, in order."""
        paths = sorted({stretch.path for stretch in stretches})
        files = {path: DataFile(path, GgufError) for path in paths}
        done = dict.fromkeys(paths, 0)
        lock = threading.Lock()

        def read(stretch: _Stretch) -> Iterator[Bytes]:
            buffer = FileBuffer(min(stretch.chunk_bytes, stretch.n_bytes))
            for at in range(0, stretch.n_bytes, max(1, stretch.chunk_bytes)):
                offset, n_bytes = stretch.offset + at, min(stretch.chunk_bytes, stretch.n_bytes - at)
                chunk = buffer.at(offset, n_bytes)
                files[stretch.path].read_into(offset, chunk)
                with lock:
                    done[stretch.path] += chunk.size
                yield chunk

        totals = [sum(stretch.n_bytes for stretch in stretches if stretch.path == path) for path in paths]
        self.progress.start([Job(path.name, total) for path, total in zip(paths, totals, strict=True)])
        pool = ThreadPoolExecutor(self.n_threads)
        try:
            futures = [pool.submit(look, read(stretch)) for look, stretch in zip(looks, stretches, strict=True)]
            while wait(futures, timeout=_POLL_S).not_done:
                self.progress.update([done[path] for path in paths], [0] * len(paths))
            return [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)
            self.progress.finish()
            for file in files.values():
                file.close()
