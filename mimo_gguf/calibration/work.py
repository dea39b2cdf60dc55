"""The work folder of a calibration: named results that appear whole or not at all.

A result is written beside its place, synced and renamed, so a run that is killed at any moment finds on its next start
exactly what was finished. The folder belongs to one run: a digest of everything that decides its results lies in it,
and a run with another digest starts afresh.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.digests import WORK
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.file_lock import locked_folder
from mimo_gguf.core.output_file import atomic_output, make_folder, sync_folder
from mimo_gguf.core.paths import path_kind

_RUN: Final = "run.json"


class WorkFolder:
    """Results by name. A name may lead into a folder: `encoded/blk.0.attn_q.weight.Q4_K`."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path

    def has(self, name: str) -> bool:
        """Whether the result is there, whole."""
        return (self.path / name).is_file()

    def save_json(self, name: str, value: Any) -> None:
        """Writes a JSON value.

        Raises:
            OutputError: the disk is full or failing.
        """
        self._write(name, lambda file: file.write(json.dumps(value, indent=1).encode()))

    def load_json(self, name: str) -> Any:
        """The JSON value of that name.

        Raises:
            OutputError: it cannot be read.
        """
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise self._unreadable(name, error) from None

    def save_array(self, name: str, array: NDArray[Any]) -> None:
        """Writes an array.

        Raises:
            OutputError: the disk is full or failing.
        """
        self._write(name, lambda file: np.save(file, array, allow_pickle=False))

    def load_array(self, name: str, *, mapped: bool = False) -> NDArray[Any]:
        """The array of that name, in memory, or mapped from the file and read-only.

        Raises:
            OutputError: it cannot be read.
        """
        try:
            loaded: NDArray[Any] = np.load(self.path / name, mmap_mode="r" if mapped else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise self._unreadable(name, error) from None
        return loaded

    def save_text(self, name: str, text: str) -> Path:
        """Writes a text; gives its path.

        Raises:
            OutputError: the disk is full or failing.
        """
        self._write(name, lambda file: file.write(text.encode()))
        return self.path / name

    def rename(self, name: str, to: str) -> None:
        """Gives a result another name, durably.

        Raises:
            OutputError: the disk is failing.
        """
        path = self.path / to
        make_folder(path.parent)
        try:
            (self.path / name).replace(path)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}", hint="run the same command again") from None
        sync_folder(path.parent)

    def remove(self, name: str) -> None:
        """Removes a result that is no longer needed, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the folder with everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, write: Any) -> None:
        path = self.path / name
        make_folder(path.parent)
        with atomic_output(path) as file:
            write(file)

    def _unreadable(self, name: str, error: Exception) -> OutputError:
        return OutputError(
            f"{self.path / name}: cannot be read: {error}", hint="remove the folder and run the same command again"
        )


@contextmanager
def held_work(path: Path) -> Iterator[None]:
    """Keeps a work folder for one run at a time: two would remove each other's results. The lock lies beside it.

    Raises:
        OutputError: another run holds it, or nothing can be written there.
    """
    make_folder(path.parent)
    lock = path.with_name(f".{path.name.removeprefix('.')}.lock")
    with locked_folder(path, lock.absolute(), "name another folder: --work DIR"):
        yield


def open_work(path: Path, identity: str) -> tuple[WorkFolder, bool]:
    """Opens the work folder at `path` for the run that `identity` decides, made or emptied if it has to be.

    Args:
        identity: everything that decides the results, as text.

    Returns:
        The folder, and whether results of another run were removed from it.

    Raises:
        OutputError: it is not a work folder, or cannot be made.
    """
    work, digest = WorkFolder(path), WORK.hex(identity.encode())
    kind = path_kind(path)
    if kind not in ("nothing", "folder"):
        raise OutputError(f"{path}: is not a folder", hint="choose another place for the work folder")
    is_ours = work.has(_RUN)
    if kind == "folder" and not is_ours and any(path.iterdir()):
        raise OutputError(f"{path}: is not a work folder, and not empty", hint="name a new folder")
    if is_ours and work.load_json(_RUN).get("digest") == digest:
        _remove_partials(path)
        return work, False
    if is_ours:
        work.discard()
    work.save_json(_RUN, {"digest": digest})
    return work, is_ours


def _remove_partials(path: Path) -> None:
    """Removes what a killed run was writing."""
    for partial in path.rglob(".*.partial"):
        partial.unlink(missing_ok=True)
