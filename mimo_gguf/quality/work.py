"""A run's work folder: what was computed stays there, so that after Ctrl-C or a kill the same command goes on.

The folder's name is a digest of base and text, so runs that share both share the base's states. Scores are kept for
each file and each way of judging it. A file of scores is replaced as a whole, states are only appended, so whatever is
found is true.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.digests import TEXT
from mimo_gguf.core.errors import OutputError
from mimo_gguf.core.file_lock import locked_folder
from mimo_gguf.core.output_file import atomic_output, check_free_space, make_folder
from mimo_gguf.quality.divergence import Floats, Ints, TokenScores

_SAVED_EVERY_S: Final = 5.0
_OLD_S: Final = 14 * 24 * 3600
_NONE: Final = -1  # a draft that was not asked for
_SCORES: Final = np.dtype(
    [("nll", "<f8"), ("p", "<f8"), ("top", "<i4"), ("base_nll", "<f8"), ("base_p", "<f8"), ("kl", "<f8"),
     ("same_top", "?"), ("drafts", "<i4", 2)]
)  # fmt: skip
_OF_BASE: Final = ("base_nll", "base_p", "kl", "same_top")


@contextmanager
def naming_work() -> Iterator[None]:
    """Lets errors about files that cannot be written name `--work`, the option that chooses their place."""
    try:
        yield
    except OutputError as error:
        hint = "choose another place: --work DIR" if error.hint and " -o" in error.hint else error.hint
        hint = hint and hint.replace("give another folder", "choose another place: --work DIR")
        raise OutputError(error.message, hint=hint) from None


def key_of(*parts: str) -> str:
    """A name for a folder or file that holds what these parts decide: 32 hexadecimal digits."""
    return TEXT.hex("\n".join(parts).encode())[:32]


def forget_old(root: Path) -> None:
    """Deletes the folders of runs that nobody went on with for two weeks."""
    for folder in root.iterdir() if root.is_dir() else ():
        with suppress(OSError):
            if (
                folder.is_dir()
                and time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > _OLD_S
            ):
                shutil.rmtree(folder, ignore_errors=True)


class ScoreFile:
    """The scores of one file's windows, in order; those that an earlier run left are there at once.

    Args:
        path: where they are kept.
        n_judged: judged rows of a window.
        n_hidden: number of ways in which drafts were made.
    """

    def __init__(self, path: Path, n_judged: int, n_hidden: int) -> None:
        self._path: Final = path
        self._n_hidden: Final = n_hidden
        self._windows = list(_read_scores(path, n_judged))
        self._saved_at = time.monotonic()
        self._n_saved = len(self._windows)

    @property
    def n_windows(self) -> int:
        """The number of windows whose scores are there."""
        return len(self._windows)

    def add(self, scores: TokenScores, drafts: Sequence[Ints]) -> None:
        """Adds the next window's scores, and its drafts for each way."""
        window = np.zeros(scores.n_tokens, _SCORES)
        window["drafts"] = _NONE
        for name in _SCORES.names or ():
            if name != "drafts" and (values := getattr(scores, name)) is not None:
                window[name] = values
        for way, tokens in enumerate(drafts):
            window["drafts"][:, way] = tokens
        self._windows.append(window)
        if time.monotonic() - self._saved_at > _SAVED_EVERY_S:
            self.save()

    def save(self) -> None:
        """Writes what is not on the disk yet.

        Raises:
            OutputError: it cannot be written.
        """
        if self._n_saved == len(self._windows):
            return
        with atomic_output(self._path) as file:
            file.write(np.stack(self._windows).tobytes())
        self._saved_at, self._n_saved = time.monotonic(), len(self._windows)

    def scores(self, index: int, *, has_base: bool) -> TokenScores:
        """The scores of a window."""
        window = self._windows[index]
        own = TokenScores(window["nll"], window["p"], window["top"])
        return replace(own, **{name: window[name] for name in _OF_BASE}) if has_base else own

    def drafts(self, index: int) -> list[Ints]:
        """The drafts of a window, for each way."""
        return [self._windows[index]["drafts"][:, way] for way in range(self._n_hidden)]


def _read_scores(path: Path, n_judged: int) -> NDArray[np.void]:
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    n = len(data) // (_SCORES.itemsize * n_judged)
    return np.frombuffer(data, _SCORES, n * n_judged).reshape(n, n_judged)


class StatesLog:
    """Rows of states, float32 [n_judged, n_embd] for each window, appended to a file in the order of the windows."""

    def __init__(self, path: Path, n_judged: int, n_embd: int, n_windows: int) -> None:
        """Opens the file, or makes it.

        Raises:
            OutputError: it cannot be written, or the disk has no room for all windows.
        """
        self._path: Final = path
        self._shape: Final = (n_judged, n_embd)
        self._n_bytes: Final = 4 * n_judged * n_embd
        there = path.stat().st_size if path.is_file() else 0
        self.n_windows = min(there // self._n_bytes, n_windows)
        check_free_space(path.parent, (n_windows - self.n_windows) * self._n_bytes)
        try:
            self._file = path.open("r+b" if there else "wb")
            self._file.truncate(self.n_windows * self._n_bytes)  # the kill may have come in the middle of a window
            self._file.seek(0, 2)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}", hint="choose another place: --work") from None

    def add(self, rows: Floats) -> None:
        """Appends the next window's rows.

        Raises:
            OutputError: the disk is full.
        """
        try:
            self._file.write(np.ascontiguousarray(rows, "<f4").data)
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror or error}", hint="choose another place: --work") from None
        self.n_windows += 1

    def rows(self, index: int) -> Floats:
        """The rows of a window."""
        values = np.fromfile(self._path, "<f4", self._shape[0] * self._shape[1], offset=index * self._n_bytes)
        return values.reshape(self._shape).astype(np.float32, copy=False)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextmanager
def work_folder(root: Path, key: str, *, kept: bool) -> Iterator[Path]:
    """Makes the folder of one run and holds it against others. It is removed if the block ends without an error.

    Within it there is a file or folder for everything that takes long to compute.

    Args:
        root: the folder of all runs.
        key: the name of this one, from `key_of`.
        kept: whether it stays when the run is done.

    Raises:
        OutputError: it cannot be made, or another run works in it.
    """
    path = root / key
    make_folder(path)
    with locked_folder(path, "lock"):
        yield path
        if not kept:
            shutil.rmtree(path, ignore_errors=True)
