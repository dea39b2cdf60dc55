"""Where the states of all windows are kept between two blocks: in memory, or in a folder that survives a kill.

A stage is the rows of all windows after some step, like `block-007` after seven blocks. A step reads one stage and
writes the next, window by window. In a folder each stage is a file that appears under its name only when it is whole
and on the disk, so a run that was killed goes on at the newest stage; older ones are deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol, overload

import numpy as np

from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.file_lock import locked_folder
from mimo_gguf.core.output_file import atomic_output, check_free_space, make_folder
from mimo_gguf.core.paths import path_kind
from mimo_gguf.reference.decode import Floats

MANIFEST: Final = "states.json"
LOCK: Final = "states.lock"
_WHAT: Final = {"products": "another arithmetic"}
Step = Callable[[int, Floats], Floats]  # the number of a window and its rows -> its rows in the next stage


class Store(Protocol):
    """Keeps stages by name."""

    def has(self, stage: str) -> bool:
        """Whether the stage is whole."""

    def write(self, stage: str, rows: Iterable[Floats]) -> None:
        """Keeps the rows of each window, in order, as a stage.

        Raises:
            OutputError: they cannot be written.
        """

    def advance(self, before: str, after: str, step: Step, *, keep: bool, on_done: Callable[[], None]) -> None:
        """Makes one stage from another, window by window, and forgets the first unless it is to be kept.

        Args:
            on_done: called when all windows are done, before the stage counts as whole.

        Raises:
            OutputError: it cannot be written.
        """

    def forget(self, stage: str) -> None:
        """Deletes a stage, if it is there."""

    def read(self, stage: str) -> Sequence[Floats]:
        """The rows of each window, float32 [n, n_embd], read when they are asked for."""


class MemoryStore:
    """Keeps stages in memory. A stage that is not kept gives its memory away window by window."""

    def __init__(self) -> None:
        self._stages: dict[str, list[Floats]] = {}

    def has(self, stage: str) -> bool:
        return stage in self._stages

    def write(self, stage: str, rows: Iterable[Floats]) -> None:
        self._stages[stage] = list(rows)

    def advance(self, before: str, after: str, step: Step, *, keep: bool, on_done: Callable[[], None]) -> None:
        rows = list(self._stages[before]) if keep else self._stages.pop(before)
        for i in range(len(rows)):
            rows[i] = step(i, rows[i])
        on_done()
        self._stages[after] = rows

    def forget(self, stage: str) -> None:
        self._stages.pop(stage, None)

    def read(self, stage: str) -> Sequence[Floats]:
        return self._stages[stage]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder of states if it is missing, and holds its lock: two runs would delete each other's files.

    Raises:
        OutputError: another run holds it, or it cannot be made.
    """
    make_folder(folder)
    with locked_folder(folder, LOCK):
        yield


class FolderStore:
    """Keeps stages as files of a folder: little-endian float32, the rows of all windows one after the other.

    Args:
        identity: JSON values of everything that decides the states; a folder of something else is refused.
        n_rows: number of rows of each window in each stage, by the stage's name up to its first hyphen.

    Raises:
        OutputError: the folder is of something else, cannot be written, or its disk is too full.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], n_rows: Mapping[str, Sequence[int]], n_embd: int
    ) -> None:
        self._folder: Final = folder
        self._n_rows: Final = n_rows
        self._n_embd: Final = n_embd
        _check_identity(folder, identity)
        for left in folder.glob(".*.partial"):  # of a run that was killed
            with suppress(OSError):
                left.unlink()
        if not any(folder.glob("*.states")):
            check_free_space(folder, 2 * max(sum(counts) for counts in n_rows.values()) * n_embd * 4)

    def has(self, stage: str) -> bool:
        return self._path(stage).is_file() and self._path(stage).stat().st_size == 4 * self._n_embd * sum(
            self._counts(stage)
        )

    def write(self, stage: str, rows: Iterable[Floats]) -> None:
        self._write(stage, rows, lambda: None)

    def advance(self, before: str, after: str, step: Step, *, keep: bool, on_done: Callable[[], None]) -> None:
        old = self.read(before)
        self._write(after, (step(i, old[i]) for i in range(len(old))), on_done)
        if not keep:
            self.forget(before)

    def forget(self, stage: str) -> None:
        with suppress(OSError):  # it only takes room
            self._path(stage).unlink(missing_ok=True)

    def read(self, stage: str) -> Sequence[Floats]:
        return StatesFile(self._path(stage), self._counts(stage), self._n_embd)

    def _path(self, stage: str) -> Path:
        return self._folder / f"{stage}.states"

    def _counts(self, stage: str) -> Sequence[int]:
        return self._n_rows[stage.partition("-")[0]]

    def _write(self, stage: str, rows: Iterable[Floats], on_done: Callable[[], None]) -> None:
        with atomic_output(self._path(stage)) as file:
            for window in rows:
                file.write(np.ascontiguousarray(window, "<f4").data)
            on_done()


class _Lazy(Sequence[Floats]):
    """A sequence of arrays, each of which is made when it is asked for."""

    def __init__(self, n: int, get: Callable[[int], Floats]) -> None:
        self._n = n
        self._get = get

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> Floats: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Floats]: ...

    def __getitem__(self, index: int | slice) -> Floats | Sequence[Floats]:
        if isinstance(index, slice):
            return [self._get(i) for i in range(self._n)[index]]
        return self._get(range(self._n)[index])

    def __iter__(self) -> Iterator[Floats]:
        return map(self._get, range(self._n))


def mapped(function: Callable[[Floats], Floats], rows: Sequence[Floats]) -> Sequence[Floats]:
    """The function of each array, computed when it is asked for."""
    return _Lazy(len(rows), lambda i: function(rows[i]))


class StatesFile(_Lazy):
    """The rows of all windows in one file; a window is read when it is asked for."""

    def __init__(self, path: Path, n_rows: Sequence[int], n_embd: int) -> None:
        self._path = path
        self._n_rows = n_rows
        self._n_embd = n_embd
        self._first = np.cumsum([0, *n_rows])
        super().__init__(len(n_rows), self._read)

    def _read(self, index: int) -> Floats:
        """The rows of one window.

        Raises:
            OutputError: the file has vanished or is too short.
        """
        count = self._n_rows[index] * self._n_embd
        try:
            values = np.fromfile(self._path, "<f4", count, offset=int(self._first[index]) * self._n_embd * 4)
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror or error}", hint="run the same command again") from None
        if len(values) != count:
            raise OutputError(f"{self._path}: the file ends early", hint="delete it and run the same command again")
        return values.reshape(-1, self._n_embd).astype(np.float32, copy=False)


def _check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Claims an empty folder, and refuses one whose states are of something else.

    Raises:
        OutputError: it is such a folder, or it cannot be written.
    """
    path = folder / MANIFEST
    if path_kind(path) == "nothing":
        if any(other.name != LOCK and not other.name.endswith(".partial") for other in folder.iterdir()):
            raise OutputError(f"{folder}: holds other files", hint="give an empty folder, or one that does not exist")
        with atomic_output(path) as file:
            file.write(json.dumps(identity, indent=2).encode() + b"\n")
        return
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read: {error}", hint="delete the folder, or give another") from None
    if found != identity:
        found = found if isinstance(found, dict) else {}
        other = next((key for key in identity if found.get(key) != identity[key]), "version")
        what = _WHAT.get(other, f"another {other}")
        raise OutputError(f"{folder}: its states are of {what}", hint="give another folder, or delete it")
