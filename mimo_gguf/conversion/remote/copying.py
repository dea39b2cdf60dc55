"""Copies a repository into this program's cache, for hubs whose own library is not at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from mimo_gguf.conversion.remote.hollow import shard_names
from mimo_gguf.conversion.remote.repository import RemoteFile, Repository, check_digests
from mimo_gguf.conversion.remote.stream import DEFAULT_FETCHING, Fetching, FileStream
from mimo_gguf.core.arrival import Span
from mimo_gguf.core.errors import HubError
from mimo_gguf.core.output_file import make_folder
from mimo_gguf.core.paths import path_kind, program_cache

_PIECE_BYTES: Final = 1 << 22


def copy_repository(repository: Repository, fetching: Fetching = DEFAULT_FETCHING) -> Path:
    """Copies the small files and the shards, if they are not there yet; every byte is checked.

    Returns:
        The folder, named after the commit.

    Raises:
        HubError: the network failed for good, or there is no space.
    """
    folder = program_cache() / "checkpoints" / repository.model_id.replace("/", "--") / repository.commit
    with _disk_errors(repository.label):
        make_folder(folder)
        for name, content in repository.small_files.items():
            if path_kind(folder / name) == "nothing":
                _write_whole(folder / name, content())
        missing = [file for file in repository.list_weights(shard_names(folder)) if not _is_there(folder, file)]
        check_digests(missing)
        for file in missing:
            _copy(file, folder / file.name, fetching)
    return folder


def _is_there(folder: Path, file: RemoteFile) -> bool:
    path = folder / file.name
    return path_kind(path) == "file" and path.stat().st_size == file.n_bytes


def _copy(file: RemoteFile, path: Path, fetching: Fetching) -> None:
    from tqdm import tqdm

    stream = FileStream([file], fetching)
    try:
        stream.start([0], [Span(0, 0, file.n_bytes)], lambda number, is_right: None)
        for number in stream.arrivals():
            with (
                _partial(path).open("wb") as partial,
                tqdm(total=file.n_bytes, desc=file.name, unit="B", unit_scale=True, disable=None) as bar,
            ):
                for start in range(0, file.n_bytes, _PIECE_BYTES):
                    piece = np.empty(min(_PIECE_BYTES, file.n_bytes - start), np.uint8)
                    stream.read_into(number, start, piece)
                    partial.write(piece.data)
                    bar.update(piece.size)
    finally:
        stream.stop()
    _partial(path).replace(path)


def _write_whole(path: Path, content: bytes) -> None:
    _partial(path).write_bytes(content)
    _partial(path).replace(path)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _disk_errors(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HubError(f"{label}: {error.strerror or error}", hint="free some space or set XDG_CACHE_HOME") from None
