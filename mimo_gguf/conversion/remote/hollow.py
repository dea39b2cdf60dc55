"""Hollow checkpoints: folders whose shards have their true headers and sizes, but no data.

They are enough to plan a conversion, its sizes and its memory. Some hundred kilobytes are read instead of 15 GB.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Final

from mimo_gguf.conversion.checkpoint import INDEX_NAME, SINGLE_NAME, read_weight_map
from mimo_gguf.conversion.remote.ranges import RangeReader
from mimo_gguf.conversion.remote.repository import RemoteFile, Repository
from mimo_gguf.conversion.safetensors_file import read_header
from mimo_gguf.core.errors import CheckpointError

_FIRST_BYTES: Final = 1 << 16  # holds most headers
_LONGEST_HEADER: Final = 100_000_000  # as the safetensors library allows


def write_hollow(repository: Repository, folder: Path, reader: RangeReader) -> dict[Path, RemoteFile]:
    """Writes the small files and hollow shards into `folder`.

    Returns:
        The file that each hollow shard stands for, by the shard's path.

    Raises:
        HubError: as `RangeReader.fill`.
        CheckpointError: an index that is not one.
    """
    for name, content in repository.small_files.items():
        (folder / name).write_bytes(content())
    shards = {}
    for file in repository.list_weights(shard_names(folder)):
        path = folder / file.name
        head = _write_shard(path, file, reader)
        try:
            read_header(path)
        except CheckpointError:  # it may have been damaged on the way; if it comes so again, it is the file's
            head = _write_shard(path, file, reader)
        shards[path] = replace(file, head=head)
    return shards


def _write_shard(path: Path, file: RemoteFile, reader: RangeReader) -> bytes:
    """Writes one hollow shard; gives its header."""
    head = _read_head(file, reader)
    with path.open("wb") as shard:
        shard.write(head)
        shard.truncate(max(file.n_bytes, len(head)))
    return head


def shard_names(folder: Path) -> list[str]:
    """The names of the shards by the index in `folder`; without an index there is one shard."""
    if not (folder / INDEX_NAME).is_file():
        return [SINGLE_NAME]
    return sorted(set(read_weight_map(folder / INDEX_NAME).values()))


def _read_head(file: RemoteFile, reader: RangeReader) -> bytes:
    """The length of the header and the header; of what is not a safetensors file, some bytes.

    Format: https://github.com/huggingface/safetensors#format.
    """
    first = bytearray(min(_FIRST_BYTES, file.n_bytes))
    reader.fill(file, 0, memoryview(first))
    if len(first) < 8:
        return bytes(first)
    (length,) = struct.unpack("<Q", first[:8])
    if length > min(_LONGEST_HEADER, file.n_bytes - 8):
        return bytes(first)
    rest = bytearray(max(0, 8 + length - len(first)))
    reader.fill(file, len(first), memoryview(rest))
    return bytes(first + rest)[: 8 + length]
