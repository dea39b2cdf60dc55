"""Copies a slot's KV caches, and saves them to disk, so that a conversation goes on without being read again.

llama.cpp aborts if a state is damaged or belongs to another model. So the file holds a key and digests, and only a
state that agrees with both is given to llama.cpp.
"""

from __future__ import annotations

import json
import struct
from array import array
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np

from mimo_gguf.core.digests import STATE
from mimo_gguf.core.documents import DocumentKind
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.core.paths import path_kind
from mimo_gguf.engine.session import Session
from mimo_gguf.engine.slot import Slot
from mimo_gguf.llama.api import LlamaContext, api
from mimo_gguf.llama.sequence_state import Blob, read_state, state_bytes, write_state

_MAGIC: Final = b"mimo-gguf state 1\n"
_LONGEST_HEADER: Final = 64 << 20
_HEADER: Final = DocumentKind(GgufError, "it is not used", most_bytes=_LONGEST_HEADER)
_UNUSABLE: Final = (
    GgufError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, struct.error,
)  # fmt: skip


class Caches(NamedTuple):
    """A copy of a slot's KV caches.

    Attributes:
        tokens: the tokens whose keys and values they hold.
        mtp_end: the end of the rows that the MTP context has seen.
        blobs: the target's cache, then that of the MTP context if there is one.
    """

    tokens: array[int]
    mtp_end: int
    blobs: tuple[Blob, ...]

    @property
    def n_bytes(self) -> int:
        """The bytes of the copy."""
        return sum(blob.nbytes for blob in self.blobs) + self.tokens.itemsize * len(self.tokens)


def state_key(file: GgufFile, session: Session) -> str:
    """The key that a saved state must have: llama.cpp's version, the model's header, and how its cache is stored."""
    parts = " ".join(part.header_digest for part in file.parts)
    options = session.options
    version = api().llama_version().decode()
    return f"{version} {parts} {options.kv_type} {options.flash_attn} {options.hidden} {options.n_draft}"


def save_state(session: Session, slot: Slot, key: str, path: Path) -> None:
    """Writes the KV caches of `slot` to `path`, completely or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    caches = read_caches(session, slot)
    header = {
        "key": key, "tokens": list(caches.tokens), "mtp_end": caches.mtp_end,
        "sizes": [blob.nbytes for blob in caches.blobs], "digests": [_digest(blob) for blob in caches.blobs],
    }  # fmt: skip
    text = json.dumps(header).encode()
    with atomic_output(path) as file:
        file.write(_MAGIC + struct.pack("<I", len(text)) + text)
        for blob in caches.blobs:
            file.write(blob.data)


def read_caches(session: Session, slot: Slot) -> Caches:
    """Copies the KV caches of a slot. Raises BackendError if the MTP context fails."""
    with session.target.lock:
        contexts = _contexts(session, slot)
        blobs = tuple(read_state(api(), context.pointer, slot.seq_id) for context in contexts)
        return Caches(array("i", slot.tokens), slot.mtp_rows.end if slot.mtp_rows is not None else 0, blobs)


def caches_bytes(session: Session, slot: Slot) -> int:
    """The bytes that `read_caches` would copy. Raises BackendError if the MTP context fails."""
    with session.target.lock:
        return sum(state_bytes(api(), context.pointer, slot.seq_id) for context in _contexts(session, slot))


def _contexts(session: Session, slot: Slot) -> list[LlamaContext]:
    """The contexts that have caches of a slot, all of which hold what is known and nothing else."""
    session.drop_unfinished(slot)
    drafter = session.drafter
    if drafter is None or slot.mtp_rows is None:
        return [session.target]
    drafter.catch_up(slot.mtp_rows)
    return [session.target, drafter.context]


def write_caches(session: Session, slot: Slot, caches: Caches) -> bool:
    """Gives a slot these KV caches instead of its own. Returns False, with the slot empty, if llama.cpp refuses them.

    If llama.cpp did not make them itself, for a session as this one, it may end the process.
    """
    with session.target.lock:
        session.reset(slot)
        is_whole = 0 < len(caches.tokens) < slot.window and _write_all(session, slot, caches)
        if not is_whole:
            session.reset(slot)
        return is_whole


def load_state(session: Session, slot: Slot, key: str, path: Path) -> bool:
    """Replaces the slot's KV caches by saved ones. Returns False, with the slot empty, if they cannot be used."""
    session.reset(slot)
    drafter = session.drafter
    if path_kind(path) != "file":  # opening a pipe would wait
        return False
    try:
        with path.open("rb") as file:
            header = _read_header(file)
            blobs = [_read_blob(file, size) for size in header["sizes"]]
        wanted = 1 + (drafter is not None)
        if header["key"] != key or len(blobs) < wanted or [_digest(blob) for blob in blobs] != header["digests"]:
            return False
        caches = Caches(array("i", map(int, header["tokens"])), int(header["mtp_end"]), tuple(blobs))
    except (
        GgufError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        struct.error,
    ):
        return False
    return write_caches(session, slot, caches)


def _write_all(session: Session, slot: Slot, caches: Caches) -> bool:
    """Gives the empty slot its tokens and KV caches. Returns False if llama.cpp refuses the caches."""
    if not write_state(api(), session.target.pointer, slot.seq_id, caches.blobs[0]):
        return False
    slot.tokens = list(caches.tokens)
    if session.drafter is not None and slot.mtp_rows is not None:
        if not write_state(api(), session.drafter.context.pointer, slot.seq_id, caches.blobs[1]):
            return False
        slot.mtp_rows.resume(caches.mtp_end)
    return True


def _read_header(file: IO[bytes]) -> dict[str, Any]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("not a saved state")
    (length,) = struct.unpack("<I", file.read(4))
    if length > _LONGEST_HEADER:
        raise ValueError("not a saved state")
    header: dict[str, Any] = _HEADER.parse_json(file.read(length), "the saved state")
    return header


def _read_blob(file: IO[bytes], size: int) -> Blob:
    at = file.tell()
    if not 0 <= size <= file.seek(0, 2) - at:
        raise ValueError("the file is cut short")
    file.seek(at)
    return np.fromfile(file, np.uint8, size)


def _digest(blob: Blob) -> str:
    return STATE.hex(blob.data)
