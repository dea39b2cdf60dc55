"""Merges importance matrices of the same model, measured on different texts, into one of all texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.importance_file import ImportanceSums, Sums, read_importance_sums, write_importance_sums
from mimo_gguf.core.output_file import check_output
from mimo_gguf.quality.imatrix.statistics import check_same_model


@dataclass(frozen=True, slots=True)
class MergeReport:
    """A merged importance matrix.

    Attributes:
        path: the file.
        n_matrices: number of matrices in it.
        n_chunks, chunk_size: of the first file's size, what the texts make together.
        partial: matrices that not all files have.
    """

    path: Path
    n_matrices: int
    n_chunks: int
    chunk_size: int
    partial: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return {
            "path": str(self.path),
            "matrices": self.n_matrices,
            "chunks": self.n_chunks,
            "chunk_size": self.chunk_size,
            "partial": list(self.partial),
        }


def merge_imatrices(files: Sequence[str | Path], *, out: str | Path, force: bool = False) -> MergeReport:
    """Adds the sums and counts of importance matrices, as llama-imatrix does with several `--in-file`.

    Args:
        files: at least two files in GGUF form, ours or llama-imatrix's.
        out: the file to make.
        force: whether an existing file is replaced.

    Raises:
        UsageError: fewer than two files, or they are of different models.
        GgufError: no such file, or not an importance matrix.
        OutputError: the file exists already or cannot be written.
    """
    paths, target = [Path(file) for file in files], Path(out)
    if len(paths) < 2:
        raise UsageError("merging needs at least two importance matrices", hint="mimo-gguf imatrix --merge A B -o C")
    check_output(target, force=force)
    read = [read_importance_sums(path) for path in paths]
    for path, other in zip(paths[1:], read[1:], strict=True):
        check_same_model(paths[0], read[0], path, other)
    merged = merge(read)
    write_importance_sums(target, merged)
    partial = sorted(name for name in merged.sums if not all(name in part.sums for part in read))
    return MergeReport(target, len(merged.sums), merged.n_chunks, merged.chunk_size, tuple(partial))


def merge(parts: Sequence[ImportanceSums]) -> ImportanceSums:
    """The sums of all parts together. A count that stands for several experts is given to each of them."""
    sums: dict[str, Sums] = {}
    counts: dict[str, Sums] = {}
    for part in parts:
        for name in part.sums:
            of_part, count = part.sums[name].astype(np.float64), part.counts[name].astype(np.float64)
            if name not in sums:
                sums[name], counts[name] = of_part, count
                continue
            n = max(count.size, counts[name].size)
            counts[name] = np.broadcast_to(counts[name], n) + np.broadcast_to(count, n)
            sums[name] = sums[name].reshape(n, -1) + of_part.reshape(n, -1)
    chunk_size = parts[0].chunk_size
    n_rows = max(float(count.max()) for count in counts.values())
    return ImportanceSums(
        sums=sums,
        counts=counts,
        datasets=tuple(dict.fromkeys(name for part in parts for name in part.datasets)),
        n_chunks=int(n_rows) // chunk_size if chunk_size else sum(part.n_chunks for part in parts),
        chunk_size=chunk_size,
    )
