"""The checksums of a file, kept in a small JSON file beside it: `<file>.sums.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.certificate_room import Room
from mimo_gguf.core.digests import HEADER, SUMS
from mimo_gguf.core.documents import MEGABYTE, DocumentKind
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_header import GgufLayout

_FORMAT: Final = "mimo-gguf checksums 1"
_ALGORITHM: Final = "xxh3-128 over the xxh3-128 digests of each chunk_bytes"
_HINT: Final = "remove it and verify again: without it, verify checks what it still can"
_SUMS: Final = DocumentKind(GgufError, _HINT, most_bytes=100 * MEGABYTE)  # a split model has some kilobytes


def checksum_path(path: Path) -> Path:
    """The path of the checksums of the file at `path`."""
    return path.with_name(f"{path.name}.sums.json")


@dataclass(frozen=True, slots=True)
class TensorSum:
    """The checksum of one tensor's bytes: the digest of the digests of its chunks of `chunk_bytes`.

    Attributes:
        offset: of its first byte in the file.
    """

    name: str
    offset: int
    n_bytes: int
    chunk_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Checksums:
    """The checksums of one file: of its header and of each tensor. All other bytes are zeros.

    Attributes:
        run: the digest of what made the file (source, profile, options, version). A run with the same digest need not
            make the file again.
        sha256: the hex digest of the whole file, as the Hub shows it. Empty until `verify` has read the file from its
            start to its end: the header comes first and holds digests that are known last.
        room: the place for a certificate in the header, which the header's digest does not cover; see `HEADER`.
    """

    file: str
    n_bytes: int
    header_bytes: int
    header_digest: bytes
    tensors: tuple[TensorSum, ...]
    run: str
    sha256: str = ""
    room: Room | None = None

    @classmethod
    def of(cls, file: str, layout: GgufLayout, tensors: Sequence[TensorSum], run: str) -> Checksums:
        """Makes the checksums of a file from its layout and the checksums of its tensors."""
        text = file.encode(errors="replace").decode()  # a file's name may not be UTF-8
        return cls(
            text, layout.n_bytes, len(layout.header), HEADER.of(layout.header), tuple(tensors), run, room=layout.room
        )

    def as_bytes(self) -> bytes:
        """The JSON document, one tensor per line."""
        head = {
            "format": _FORMAT,
            "algorithm": _ALGORITHM,
            "file": self.file,
            "n_bytes": self.n_bytes,
            "header": {"n_bytes": self.header_bytes, "digest": self.header_digest.hex()} | self._room_json(),
            "run": self.run,
            **({"sha256": self.sha256} if self.sha256 else {}),
            "digest": SUMS.hex(self._canonical()),
        }
        lines = ",\n".join("    " + json.dumps(_tensor_json(tensor)) for tensor in self.tensors)
        return (json.dumps(head, indent=2)[:-2] + f',\n  "tensors": [\n{lines}\n  ]\n}}\n').encode()

    def _room_json(self) -> dict[str, Any]:
        return {"certificate_room": [self.room.offset, self.room.n_bytes]} if self.room else {}

    def _canonical(self) -> bytes:
        lines = [f"{self.file} {self.n_bytes} {self.header_bytes} {self.header_digest.hex()}"]
        lines += [value for value in (self.run, self.sha256) if value]
        lines += [json.dumps(self._room_json())] if self.room else []
        lines += [json.dumps(_tensor_json(tensor)) for tensor in self.tensors]
        return "\n".join(lines).encode()


def _is_possible(sums: Checksums) -> bool:
    """Whether a file can have these places: one tensor after the other, all between the header and the end."""
    end = sums.header_bytes
    for tensor in sums.tensors:
        if tensor.offset < end or tensor.n_bytes < 0 or tensor.chunk_bytes < 1:
            return False
        end = tensor.offset + tensor.n_bytes
    room = sums.room or Room(0, 0)
    return sums.header_bytes >= 0 and end <= sums.n_bytes and 0 <= room.offset <= room.end <= sums.header_bytes


def _tensor_json(tensor: TensorSum) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "offset": tensor.offset,
        "n_bytes": tensor.n_bytes,
        "chunk_bytes": tensor.chunk_bytes,
        "digest": tensor.digest.hex(),
    }


def read_checksums(path: Path) -> Checksums:
    """The checksums stored in the file at `path`.

    Raises:
        GgufError: the file cannot be read, has another form, or was itself changed.
    """
    try:
        table = _SUMS.read_json(path)
        header = table["header"]
        tensors = tuple(
            TensorSum(
                str(t["name"]), int(t["offset"]), int(t["n_bytes"]), int(t["chunk_bytes"]), bytes.fromhex(t["digest"])
            )
            for t in table["tensors"]
        )
        sums = Checksums(
            str(table["file"]),
            int(table["n_bytes"]),
            int(header["n_bytes"]),
            bytes.fromhex(header["digest"]),
            tensors,
            str(table.get("run", "")),
            str(table.get("sha256", "")),
            Room(*map(int, header["certificate_room"])) if "certificate_room" in header else None,
        )
        stored = (table["format"], table["digest"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise GgufError(f"{path}: not a file of checksums", hint=_HINT) from None
    if not _is_possible(sums):
        raise GgufError(f"{path}: not a file of checksums", hint=_HINT)
    if stored != (_FORMAT, SUMS.hex(sums._canonical())):
        raise GgufError(f"{path}: the checksums themselves were changed", hint=_HINT)
    return sums
