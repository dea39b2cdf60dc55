"""Verifies that a GGUF file is still what was written: any flipped bit, missing end or appended byte is found.

There are three methods; the best that the file allows is used. With the checksums beside it (`<file>.sums.json`) every
byte is covered. Without them, a file made by this tool has a digest over all its tensors in its metadata: damage is
found, but not its place. In any other file the form, the length, and that all floats and block scales are finite are
checked. A program that makes a file from ours may copy our metadata: by the digest of the tensor table such a file is
distinguished from a damaged one.

A certificate of the file's quality is not covered by these. It has a digest of itself and one of the tensors that it is
about; both are checked whichever method is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from mimo_gguf.core.certificate_room import with_empty_room
from mimo_gguf.core.digests import CHUNK, HEADER, TENSOR
from mimo_gguf.core.errors import GgufError, OutputError
from mimo_gguf.core.gguf_file import GgufFile, GgufPart, read_gguf
from mimo_gguf.core.machine import available_cores
from mimo_gguf.core.model_source import Bytes, TensorInfo
from mimo_gguf.core.progress import Progress, Silence
from mimo_gguf.core.stored_certificate import read_certificate
from mimo_gguf.core.tensor_table import digest_table_of
from mimo_gguf.quantization.block_scales import first_bad_row
from mimo_gguf.quantization.certificates import TensorsIdentity, judge_certificate
from mimo_gguf.quantization.checksums import Checksums, checksum_path, read_checksums
from mimo_gguf.quantization.chunks import CHUNK_WEIGHTS, chunk_rows
from mimo_gguf.quantization.file_pass import FileRead, Look, TensorBytes, read_file
from mimo_gguf.quantization.output_digests import digest_tensors
from mimo_gguf.quantization.partial_file import write_whole
from mimo_gguf.quantization.plan import DIGEST_CHUNK, TABLE_DIGEST, TENSORS_DIGEST

CHECKSUMS: Final = "checksums"
EMBEDDED: Final = "embedded digest"
STRUCTURE: Final = "structure only"
_READ_AT_ONCE: Final = 1 << 20
_LARGEST_CHUNK: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification.

    Attributes:
        method: CHECKSUMS, EMBEDDED or STRUCTURE.
        problems: one line each; empty if the method finds the file intact.
        notes: one line each; what a reader should know about an intact file.
        without_checksums: the parts that have no checksums beside them.
        sha256: file -> hex digest, for each file that was read to its end.
        recorded: the files whose SHA-256 was added to their checksums.
        certificate: where a certificate is stored that is about these tensors, in words; None if there is none.
        certificate_problems: one line each; what is wrong with a certificate of the file, which may itself be intact.
        tensors_digest: hex digest of all tensors' data as they are now.
    """

    paths: tuple[Path, ...]
    method: str
    n_tensors: int
    n_bytes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    without_checksums: tuple[Path, ...] = ()
    sha256: Mapping[Path, str] = field(default_factory=dict)
    recorded: tuple[Path, ...] = ()
    certificate: str | None = None
    certificate_problems: tuple[str, ...] = ()
    tensors_digest: str = ""

    @property
    def intact(self) -> bool:
        """Whether no problem was found, neither with the file nor with its certificate."""
        return not self.problems and not self.certificate_problems

    def as_json(self) -> dict[str, Any]:
        """The verification as a JSON document."""
        return {
            "paths": [str(path) for path in self.paths],
            "intact": self.intact,
            "method": self.method,
            "n_tensors": self.n_tensors,
            "n_bytes": self.n_bytes,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "without_checksums": [str(path) for path in self.without_checksums],
            "sha256": {str(path): digest for path, digest in self.sha256.items()},
            "recorded": [str(path) for path in self.recorded],
            "certificate": self.certificate,
            "certificate_problems": list(self.certificate_problems),
        }


def verify_gguf(path: Path, progress: Progress | None = None, n_threads: int | None = None) -> Verification:
    """Reads the whole file at `path`, or all parts of a split one, and compares it with what was written.

    The SHA-256 of each intact file is added to its checksums if they lack it.

    Raises:
        GgufError: no such file, a header so damaged that it cannot be read, a failing disk, or checksums that were
            changed.
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
    beside = {part.path: _sums_beside(part.path) for part in model.parts}
    known = {part_path: part_sums for part_path, part_sums in beside.items() if part_sums is not None}
    read = partial(_read_parts, model, progress=progress, n_threads=n_threads)
    stored = read_certificate(model)
    if len(known) == len(model.parts):
        found = _by_checksums(known, read)
    elif _digest_chunk(model) is not None:
        found = _by_embedded_digest(model, known, read)
    else:
        found = _by_structure(model, read, stored.chunk_weights or CHUNK_WEIGHTS)
    certificate = judge_certificate(model, stored, found.tensors_digest)
    verification = Verification(
        paths=tuple(part.path for part in model.parts),
        method=found.method,
        n_tensors=sum(len(part.tensors) for part in model.parts),
        n_bytes=sum(part.path.stat().st_size for part in model.parts),
        problems=tuple(found.problems),
        notes=(*found.notes, *certificate.notes),
        without_checksums=tuple(part.path for part in model.parts if part.path not in known),
        sha256={file.path: file.sha256 for file in found.files},
        certificate=certificate.places,
        certificate_problems=certificate.problems,
        tensors_digest=found.tensors_digest,
    )
    return replace(verification, recorded=tuple(_record(verification, known)))


def identify_tensors(model: GgufFile, found: Verification) -> TensorsIdentity:
    """Names the tensors that a verification of the same file has read, for a certificate about them."""
    return TensorsIdentity(found.tensors_digest, _digest_chunk(model) or CHUNK_WEIGHTS, digest_table_of(model))


def _sums_beside(path: Path) -> Checksums | None:
    return read_checksums(checksum_path(path)) if checksum_path(path).is_file() else None


def _record(found: Verification, known: Mapping[Path, Checksums]) -> Iterator[Path]:
    """Adds the SHA-256 of intact files to checksums that lack it, if they can be written; gives those files."""
    for path, sums in known.items():
        if found.intact and not sums.sha256 and path in found.sha256:
            with suppress(OutputError):
                write_whole(checksum_path(path), replace(sums, sha256=found.sha256[path]).as_bytes())
                yield path


# ---- reading


class _Found(NamedTuple):
    method: str
    files: Sequence[FileRead]
    tensors_digest: str
    problems: Sequence[str]
    notes: Sequence[str] = ()


ReadParts = Callable[[Mapping[Path, Sequence[TensorBytes]], Look], list[FileRead]]


def _read_parts(
    model: GgufFile,
    tensors: Mapping[Path, Sequence[TensorBytes]],
    look: Look,
    *,
    progress: Progress,
    n_threads: int,
) -> list[FileRead]:
    return [
        read_file(part.path, tensors[part.path], part.data_offset, look, progress, n_threads) for part in model.parts
    ]


def _tensors_of(model: GgufFile, chunk_weights: int) -> dict[Path, list[TensorBytes]]:
    """The places of all tensors, as the files' own tables give them."""
    return {
        part.path: [
            TensorBytes(
                name=tensor.info.name,
                offset=tensor.offset,
                n_bytes=tensor.info.n_bytes,
                chunk_bytes=chunk_rows(tensor.info, chunk_weights) * tensor.info.row_bytes,
                info=tensor.info,
            )
            for tensor in part.tensors
        ]
        for part in model.parts
    }


def _digest(_: TensorBytes, data: Bytes) -> bytes:
    return CHUNK.of(data)


def _bad_row(tensor: TensorBytes, data: Bytes) -> int | None:
    assert isinstance(tensor.info, TensorInfo)
    return first_bad_row(data.reshape(-1, tensor.info.row_bytes), tensor.info.ggml_type)


def _digest_and_bad_row(tensor: TensorBytes, data: Bytes) -> tuple[bytes, int | None]:
    return _digest(tensor, data), _bad_row(tensor, data)


# ---- the three methods


def _by_checksums(known: Mapping[Path, Checksums], read: ReadParts) -> _Found:
    """Verifies by checksums. They give the places of the tensors, so that a changed tensor table hides nothing."""
    tensors = {
        path: [TensorBytes(t.name, t.offset, t.n_bytes, t.chunk_bytes) for t in sums.tensors]
        for path, sums in known.items()
    }
    files = read(tensors, _digest)
    digests = [
        (file, tensor, TENSOR.of_digests(pieces))
        for file in files
        for tensor, pieces in zip(known[file.path].tensors, file.seen, strict=True)
    ]
    problems = [line for file in files for line in _frame_problems(file, known[file.path])]
    problems += [
        f"{file.path.name}: the data of {tensor.name} changed"
        for file, tensor, digest in digests
        if digest != tensor.digest
    ]
    for file in files:
        if not problems and known[file.path].sha256 not in ("", file.sha256):
            problems.append(f"{file.path.name}: its sha256 is not the one in its checksums")
    return _Found(CHECKSUMS, files, digest_tensors({tensor.name: d for _, tensor, d in digests}), problems)


def _frame_problems(file: FileRead, sums: Checksums) -> list[str]:
    """The problems of everything that is not tensor data: length, header, and the zeros between tensors."""
    return [
        *_length_problems(file.path, sums.n_bytes),
        *_header_problems(file.path, sums),
        *_padding_problems(file, sums.header_bytes),
    ]


def _length_problems(path: Path, expected: int) -> list[str]:
    size = path.stat().st_size
    if size == expected:
        return []
    what = f"{size - expected} bytes were appended" if size > expected else f"{expected - size} bytes are missing"
    return [f"{path.name}: {what}"]


def _header_problems(path: Path, sums: Checksums) -> list[str]:
    hasher, at = HEADER.start(), 0
    with path.open("rb") as file:
        while data := file.read(min(sums.header_bytes - at, _READ_AT_ONCE)):
            hasher.update(with_empty_room(data, sums.room, at))
            at += len(data)
    intact = hasher.digest() == sums.header_digest
    return [] if intact else [f"{path.name}: the header changed (metadata or tensor table)"]


def _padding_problems(file: FileRead, header_bytes: int) -> list[str]:
    dirty = [offset for offset in file.dirty if offset >= header_bytes]
    return [f"{file.path.name}: bytes between tensors changed (at {dirty[0]})"] if dirty else []


def _gap_problems(file: FileRead, part: GgufPart) -> list[str]:
    """The problems of the length and the zeros between tensors, by the file's own table."""
    end = max((tensor.offset + tensor.info.n_bytes for tensor in part.tensors), default=part.data_offset)
    return _length_problems(file.path, -(-end // part.alignment) * part.alignment) or _padding_problems(
        file, part.data_offset
    )


def _digest_chunk(model: GgufFile) -> int | None:
    """The weights in a chunk of the digest in the file; None if there is no such digest, or no valid number."""
    weights = model.value(DIGEST_CHUNK)
    there = all(isinstance(model.value(key), str) for key in (TENSORS_DIGEST, TABLE_DIGEST))
    return weights if there and isinstance(weights, int) and 1 <= weights <= _LARGEST_CHUNK else None


def _by_embedded_digest(model: GgufFile, known: Mapping[Path, Checksums], read: ReadParts) -> _Found:
    """Verifies by the one digest over all tensors. If some parts have checksums, these say which tensor changed."""
    chunk_weights = _digest_chunk(model) or CHUNK_WEIGHTS
    files = read(_tensors_of(model, chunk_weights), _digest_and_bad_row)
    digests = _digests(model, files)
    problems = [line for file, part in zip(files, model.parts, strict=True) for line in _gap_problems(file, part)]
    problems += [line for path, sums in known.items() for line in _header_problems(path, sums)]
    tensors_digest = digest_tensors({name: digest for _, name, digest in digests})
    if tensors_digest == model.value(TENSORS_DIGEST):
        return _Found(EMBEDDED, files, tensors_digest, problems)
    if not known and digest_table_of(model) != model.value(TABLE_DIGEST):
        bad_rows = _bad_rows(model, files, chunk_weights)
        return _Found(STRUCTURE, files, tensors_digest, problems + bad_rows, [_foreign(model)])
    expected = {(path, tensor.name): tensor.digest for path, sums in known.items() for tensor in sums.tensors}
    changed = [
        f"{file.path.name}: the data of {name} changed"
        for file, name, digest in digests
        if expected.get((file.path, name), digest) != digest
    ]
    unknown = f"{model.path.name}: the data of a tensor changed; without checksums we do not know which"
    return _Found(EMBEDDED, files, tensors_digest, problems + (changed or [unknown]))


def _foreign(model: GgufFile) -> str:
    """Describes a file that has our metadata, but other tensors than the metadata describes."""
    name, profile = model.value("mimo_gguf.source.name", "?"), model.value("mimo_gguf.profile", "?")
    return f"made by another program from the {profile} file of {name}; its own digest is not known"


def _by_structure(model: GgufFile, read: ReadParts, chunk_weights: int) -> _Found:
    files = read(_tensors_of(model, chunk_weights), _digest_and_bad_row)
    problems = [line for file, part in zip(files, model.parts, strict=True) for line in _gap_problems(file, part)]
    digest = digest_tensors({name: digest for _, name, digest in _digests(model, files)})
    return _Found(STRUCTURE, files, digest, problems + _bad_rows(model, files, chunk_weights))


def _digests(model: GgufFile, files: Sequence[FileRead]) -> list[tuple[FileRead, str, bytes]]:
    """The digests of all tensors that `_digest_and_bad_row` looked at, with their files and names."""
    return [
        (file, tensor.info.name, TENSOR.of_digests(digest for digest, _ in pieces))
        for file, part in zip(files, model.parts, strict=True)
        for tensor, pieces in zip(part.tensors, file.seen, strict=True)
    ]


def _bad_rows(model: GgufFile, files: Sequence[FileRead], chunk_weights: int) -> list[str]:
    """Describes in a line each tensor with a row that holds Inf or NaN, as `_digest_and_bad_row` saw them."""
    lines = []
    seen = (pieces for file in files for pieces in file.seen)
    for (part, tensor), pieces in zip(model.tensors(), seen, strict=True):
        rows = chunk_rows(tensor.info, chunk_weights)
        bad = [number * rows + row for number, (_, row) in enumerate(pieces) if row is not None]
        if bad:
            lines.append(f"{part.path.name}: {tensor.info.name}: row {bad[0]} holds Inf or NaN")
    return lines
