"""What a run keeps beside its output until it is done, so that a killed one goes on: an importance file in float64."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.importance_file import ImportanceSums, read_importance_sums, write_importance_sums
from mimo_gguf.core.model_source import string
from mimo_gguf.core.paths import path_kind
from mimo_gguf.quality.imatrix.gathering import Gathering, RowSums

_RUN: Final = "mimo_gguf.imatrix.run"


def kept_path(out: Path) -> Path:
    """Where the sums of an unfinished run lie."""
    return out.with_name(f".{out.name}.sums")


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
        write_importance_sums(kept_path(out), replace(of_run, metadata={_RUN: string(run)}), ggml_type=GgmlType.F64)


def find_kept(out: Path, run: str) -> tuple[Gathering, int]:
    """The sums that an earlier call of the same run has kept, and the number of their windows; empty if there are none.

    What another run kept, or what is damaged, counts as nothing.
    """
    if path_kind(kept_path(out)) != "file":
        return Gathering(), 0
    with suppress(GgufError):
        read = read_importance_sums(kept_path(out), ggml_type=GgmlType.F64)
        of_run = read.metadata.get(_RUN)
        if of_run is not None and of_run.value == run:
            sums = {
                name: RowSums(read.sums[name][0].astype(np.float64), int(read.counts[name][0])) for name in read.sums
            }
            return Gathering(sums), read.n_chunks
    return Gathering(), 0


def forget_kept(out: Path) -> None:
    """Deletes what was kept, and what killed runs had begun to write."""
    beside = out.parent
    for path in (
        kept_path(out),
        *beside.glob(f".{kept_path(out).name}.*.partial"),
        *beside.glob(f".{out.name}.*.partial"),
    ):
        with suppress(OSError):  # it only takes room
            path.unlink(missing_ok=True)


def as_importance(sums: dict[str, RowSums], datasets: tuple[str, ...], n_windows: int, n_ctx: int) -> ImportanceSums:
    """The sums in the form of a file."""
    return ImportanceSums(
        sums={name: of_matrix.squares[None] for name, of_matrix in sums.items()},
        counts={name: np.array([of_matrix.n_rows], np.float64) for name, of_matrix in sums.items()},
        datasets=datasets,
        n_chunks=n_windows,
        chunk_size=n_ctx,
    )
