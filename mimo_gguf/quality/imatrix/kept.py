"""What a run keeps beside its output until it is done, so that a killed one goes on.

It is a folder of one run at a time. It holds the sums so far, an importance file in float64, and for a model that is
run block by block the states of all tokens.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.file_lock import locked_folder
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.importance_file import ImportanceSums, read_importance_sums, write_importance_sums
from mimo_gguf.core.model_source import string
from mimo_gguf.core.output_file import make_folder
from mimo_gguf.core.paths import path_kind
from mimo_gguf.quality.imatrix.gathering import Gathering, RowSums

_RUN: Final = "mimo_gguf.imatrix.run"


def kept_folder(out: Path) -> Path:
    """The folder of an unfinished run."""
    return out.with_name(f".{out.name}.run")


def states_folder(out: Path) -> Path:
    """The folder with the states of all tokens."""
    return kept_folder(out) / "states"


def sums_path(out: Path) -> Path:
    """The file with the sums so far."""
    return kept_folder(out) / "sums.gguf"


@contextmanager
def keeping(out: Path) -> Iterator[None]:
    """Makes the folder, holds it against other runs, and deletes it if the block ends without an error.

    Raises:
        OutputError: another run holds it, or it cannot be made.
    """
    make_folder(kept_folder(out))
    try:
        with locked_folder(kept_folder(out), "lock"):
            yield
    finally:
        with suppress(OSError):  # there is something to go on with
            kept_folder(out).rmdir()
    shutil.rmtree(kept_folder(out), ignore_errors=True)
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):  # of runs that were killed at the very end
        with suppress(OSError):  # it only takes room
            path.unlink(missing_ok=True)


def keep(out: Path, run: str, gathered: Gathering, n_windows: int, n_ctx: int) -> None:
    """Keeps the sums of a run.

    Args:
        run: digest of everything that decides the result.
        n_windows: number of windows that are in the sums.

    Raises:
        OutputError: they cannot be written.
    """
    if gathered.sums:
        of_run = as_importance(gathered.sums, (), n_windows, n_ctx)
        write_importance_sums(sums_path(out), replace(of_run, metadata={_RUN: string(run)}), ggml_type=GgmlType.F64)


def find_kept(out: Path, run: str) -> tuple[Gathering, int]:
    """The sums that an earlier call of the same run has kept, and the number of their windows; empty if there are none.

    What another run kept, or what is damaged, counts as nothing.
    """
    if path_kind(sums_path(out)) != "file":
        return Gathering(), 0
    with suppress(GgufError):
        read = read_importance_sums(sums_path(out), ggml_type=GgmlType.F64)
        of_run = read.metadata.get(_RUN)
        if of_run is not None and of_run.value == run:
            sums = {
                name: RowSums(read.sums[name][0].astype(np.float64), int(read.counts[name][0])) for name in read.sums
            }
            return Gathering(sums), read.n_chunks
    return Gathering(), 0


def as_importance(sums: dict[str, RowSums], datasets: tuple[str, ...], n_windows: int, n_ctx: int) -> ImportanceSums:
    """The sums in the form of a file."""
    return ImportanceSums(
        sums={name: of_matrix.squares[None] for name, of_matrix in sums.items()},
        counts={name: np.array([of_matrix.n_rows], np.float64) for name, of_matrix in sums.items()},
        datasets=datasets,
        n_chunks=n_windows,
        chunk_size=n_ctx,
    )
