"""Stores a certificate with the file that it is about, and judges whether a stored one is about the file's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from mimo_gguf.core.certificate_room import write_into_room
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.stored_certificate import TENSORS, StoredCertificate, certificate_path, seal
from mimo_gguf.core.tensor_table import digest_table_of
from mimo_gguf.quantization.checksums import checksum_path, read_checksums
from mimo_gguf.quantization.partial_file import write_whole

_NO_ROOM: Final = "the file reserves no room for a certificate, so it lies only beside the file"


class CertificateFound(NamedTuple):
    """What was found of a certificate.

    Attributes:
        places: where one is stored that is about these tensors, in words; None if there is none.
        problems: one line each; what is wrong with it.
        notes: one line each; what a reader should know, though nothing is wrong.
    """

    places: str | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def judge_certificate(model: GgufFile, stored: StoredCertificate, tensors_digest: str) -> CertificateFound:
    """Compares the certificate of a file with the tensors in it.

    A program that makes a file from ours copies the certificate along. Then its tensor table is another one, which is
    not a fault of the file.

    Args:
        tensors_digest: computed from the tensors' data.
    """
    name = model.path.name
    if stored.document is None:
        return CertificateFound(None, stored.problems)
    if not stored.has_table(digest_table_of(model)):
        note = f"{name}: its certificate was copied from the file that it was made from, and does not count"
        return CertificateFound(None, stored.problems, (note,))
    if not stored.has_tensors(tensors_digest):
        return CertificateFound(None, (*stored.problems, f"{name}: the certificate is about other tensors"))
    return CertificateFound(stored.places, stored.problems)


@dataclass(frozen=True, slots=True)
class TensorsIdentity:
    """What a certificate says about the tensors it belongs to.

    Attributes:
        digest: of all tensors' data; see `TENSORS` in core/digests.py.
        chunk_weights: weights in the chunks that the digest is made of.
        table: digest of the tensor table.
    """

    digest: str
    chunk_weights: int
    table: str


def store_certificate(model: GgufFile, identity: TensorsIdentity, content: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes a certificate beside the file and, if it has room, into it; replaces an earlier one.

    The one beside is whole before a byte of the file changes. So a crash leaves the old certificate, the new one, or a
    torn one in the file beside a whole one. The SHA-256 in the file's checksums, which is no longer that of the file,
    is forgotten before; `verify` adds the new one.

    Returns:
        Lines for the user, one for each place that could not be used.

    Raises:
        OutputError: the disk is full or failing, or the folder is read-only.
    """
    text = seal({**content, TENSORS: _as_json(identity)})
    room = model.parts[0].room
    if room is not None:
        _forget_sha256(model)
    write_whole(certificate_path(model.path), (json.dumps(json.loads(text), indent=1) + "\n").encode())
    if room is None:
        return (_NO_ROOM,)
    if len(text) > room.n_bytes:
        write_into_room(model.path, room, "")
        return (f"the certificate does not fit into the file's room of {room.n_bytes} bytes: it lies only beside it",)
    write_into_room(model.path, room, text)
    return ()


def _as_json(identity: TensorsIdentity) -> dict[str, Any]:
    return {"digest": identity.digest, "chunk_weights": identity.chunk_weights, "table": identity.table}


def _forget_sha256(model: GgufFile) -> None:
    path = checksum_path(model.path)
    if path.is_file() and (sums := read_checksums(path)).sha256:
        write_whole(path, replace(sums, sha256="").as_bytes())
