"""Certificates as they are stored: a JSON document with a digest of itself, in a GGUF's room and in a file beside it.

The file beside, `<file>.certificate.json`, is written first and whole. If a crash tears what is in the room, the one
beside still holds. A file without room, which another program made, has only the one beside.

What a certificate says is not known here, except for the digest of the tensors that it is about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.certificate_room import CERTIFICATE_KEY
from mimo_gguf.core.digests import CERTIFICATE
from mimo_gguf.core.documents import MEGABYTE, DocumentKind
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.paths import command_word, path_kind

DIGEST: Final = "digest"
TENSORS: Final = "tensors"  # {"digest": ..., "chunk_weights": ..., "table": ...}
_KIND: Final = DocumentKind(GgufError, "measure it again, with mimo-gguf quality --certify", most_bytes=MEGABYTE)


def certificate_path(path: Path) -> Path:
    """The path of the certificate beside the file at `path`."""
    return path.with_name(f"{path.name}.certificate.json")


def seal(document: Mapping[str, Any]) -> str:
    """Writes a document as one line of ASCII, with a digest of everything else in it."""
    content = {key: value for key, value in document.items() if key != DIGEST}
    return _one_line({**content, DIGEST: CERTIFICATE.hex(_one_line(content).encode())})


def _one_line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def unseal(text: str, where: Path | str) -> dict[str, Any]:
    """Reads a document that `seal` wrote, however it is indented.

    Raises:
        GgufError: not such a document, or one that was changed.
    """
    document = _KIND.parse_json(text, where)
    if not isinstance(document, dict) or DIGEST not in document:
        raise _KIND.fail(where, "not a certificate")
    if json.loads(seal(document)) != document:
        raise _KIND.fail(where, "the certificate was changed")
    return document


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """What is stored as the certificate of a file.

    Attributes:
        inside: the one in the file; None if there is none that is whole.
        beside: the one beside it, likewise.
        problems: one line for each that was changed, and for two that differ.
    """

    inside: dict[str, Any] | None = None
    beside: dict[str, Any] | None = None
    problems: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, Any] | None:
        """The certificate: the one in the file, which goes wherever the file goes, or else the one beside it."""
        return self.beside if self.inside is None else self.inside

    @property
    def chunk_weights(self) -> int | None:
        """The weights in a chunk of the digest that the certificate has of the file's tensors; None without one."""
        weights = _part(self.document, "chunk_weights")
        return weights if isinstance(weights, int) and 1 <= weights <= 1 << 26 else None

    @property
    def places(self) -> str:
        """Where it is stored, in words."""
        words = (("in the file", self.inside), ("beside it", self.beside))
        return " and ".join(word for word, document in words if document is not None)

    def has_table(self, table_digest: str) -> bool:
        """Whether the certificate is about a file with this tensor table; this needs no tensor data."""
        return bool(_part(self.document, "table") == table_digest)

    def has_tensors(self, tensors_digest: str) -> bool:
        """Whether the certificate is about the tensors whose data have this digest."""
        return bool(_part(self.document, DIGEST) == tensors_digest)


def _part(document: Mapping[str, Any] | None, key: str) -> Any:
    tensors = (document or {}).get(TENSORS)
    return tensors.get(key) if isinstance(tensors, dict) else None


def read_certificate(model: GgufFile) -> StoredCertificate:
    """Reads what is stored as the certificate of a file, or of the first part of a split one."""
    text = str(model.value(CERTIFICATE_KEY, "")) if model.parts[0].room else ""
    inside, name = _whole(text), model.path.name
    problems = [f"{name}: the certificate in it was changed"] if inside is None and text.strip(" ") else []
    beside, problem = _read_beside(model.path)
    problems += [problem] if problem else []
    if inside is not None and beside is not None and inside != beside:
        problems.append(f"{name}: the certificate in the file is not the one beside it")
    return StoredCertificate(inside, beside, tuple(problems))


def _whole(text: str) -> dict[str, Any] | None:
    """The document that fills a room; None if any character is another than was written."""
    try:
        document = unseal(text, "")
    except GgufError:
        return None
    return document if text.rstrip(" ") == seal(document) else None


def _read_beside(model_path: Path) -> tuple[dict[str, Any] | None, str | None]:
    path = certificate_path(model_path)
    if path_kind(path) == "nothing":
        return None, None
    try:
        return unseal(_KIND.read_text(path), path.name), None
    except GgufError as error:
        return None, error.message


def repair_hint(path: Path) -> str:
    """The command that replaces a certificate that does not hold."""
    return f"mimo-gguf quality {command_word(path)} --certify"
