"""What an importance matrix says, matrix by matrix: how much is read, how evenly, and how like another matrix.

The importance of a column is the mean square of what it reads. Definitions, of sum to entropy as in llama-imatrix's
`--show-statistics`: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/tools/imatrix/README.md
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.importance_file import ImportanceSums, read_importance_sums

_ACTIVE: Final = 1e-5  # the mean square above which a column counts as active
_LARGEST: Final = 0.01  # the share of columns that count as the largest


@dataclass(frozen=True, slots=True)
class MatrixStatistics:
    """The importance of one matrix's columns.

    Attributes:
        matrix: its GGUF name.
        n_columns: number of columns.
        n_rows: number of rows that it was multiplied with.
        sum, mean, smallest, largest: of the importance of all columns.
        active: share of the columns whose importance is above 1e-5.
        entropy: in bits, of the distribution of importance over columns.
        evenness: the entropy as a share of that of equal columns, from 0 to 1.
        largest_share: share of the sum that the largest 1 % of the columns have.
        cosine: with the other matrix, from 0 to 1; None if there is none, or it lacks this entry.
    """

    matrix: str
    n_columns: int
    n_rows: int
    sum: float
    mean: float
    smallest: float
    largest: float
    active: float
    entropy: float
    evenness: float
    largest_share: float
    cosine: float | None = None


@dataclass(frozen=True, slots=True)
class ImatrixStatistics:
    """The statistics of a file.

    Attributes:
        path: the file.
        datasets, n_chunks, chunk_size: the texts that it was measured on, as the file says.
        matrices: in the order of the blocks.
        against: the other file, or None.
        only_here, only_there: matrices that the other file lacks, or has alone.
    """

    path: Path
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int
    matrices: tuple[MatrixStatistics, ...]
    against: Path | None
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The statistics as a JSON document."""
        return {
            "path": str(self.path),
            "datasets": list(self.datasets),
            "chunks": self.n_chunks,
            "chunk_size": self.chunk_size,
            "against": None if self.against is None else str(self.against),
            "only_here": list(self.only_here),
            "only_there": list(self.only_there),
            "matrices": [asdict(matrix) for matrix in self.matrices],
        }


def imatrix_statistics(path: str | Path, *, against: str | Path | None = None) -> ImatrixStatistics:
    """Describes an importance matrix in GGUF form, and compares it with another.

    Raises:
        GgufError: no such file, or not an importance matrix.
        UsageError: the other one is of another model: a matrix has another width, or they have none in common.
    """
    here, there = read_importance_sums(Path(path)), None if against is None else read_importance_sums(Path(against))
    names = sorted(here.sums, key=_place)
    if there is not None:
        check_same_model(Path(path), here, Path(str(against)), there)
    return ImatrixStatistics(
        path=Path(path),
        datasets=here.datasets,
        n_chunks=here.n_chunks,
        chunk_size=here.chunk_size,
        matrices=tuple(_describe(name, here, there) for name in names),
        against=None if against is None else Path(against),
        only_here=() if there is None else tuple(name for name in names if name not in there.sums),
        only_there=() if there is None else tuple(sorted(there.sums.keys() - here.sums.keys(), key=_place)),
    )


def check_same_model(path: Path, first: ImportanceSums, other_path: Path, other: ImportanceSums) -> None:
    """Raises UsageError if two importance matrices cannot be of the same model."""
    common = first.sums.keys() & other.sums.keys()
    if not common:
        raise UsageError(f"{other_path}: has no matrix in common with {path}", hint="they are of different models")
    for name in sorted(common):
        widths = first.sums[name].size, other.sums[name].size
        if widths[0] != widths[1]:
            raise UsageError(
                f"{other_path}: {name} has {widths[1]} columns, in {path} it has {widths[0]}",
                hint="they are of different models",
            )
        experts = {first.counts[name].size, other.counts[name].size} - {1}
        if len(experts) > 1:
            raise UsageError(
                f"{other_path}: {name} has another number of experts than in {path}",
                hint="they are of different models",
            )


def column_importance(importance: ImportanceSums, name: str) -> NDArray[np.float64]:
    """The mean squares of what the columns of a matrix read, float64 [n_columns]; without rows they are 0."""
    sums, counts = importance.sums[name].astype(np.float64), importance.counts[name].astype(np.float64)
    means: NDArray[np.float64] = (sums / np.maximum(counts, 1)[:, None]).reshape(-1)
    return means


def _describe(name: str, here: ImportanceSums, there: ImportanceSums | None) -> MatrixStatistics:
    values = column_importance(here, name)
    total = float(values.sum())
    shares = values / total if total > 0 else np.full(values.size, 1 / values.size)
    positive = shares[shares > 0]
    entropy = float(-(positive * np.log2(positive)).sum())
    n_largest = max(1, round(_LARGEST * values.size))
    other = None if there is None or name not in there.sums else column_importance(there, name)
    return MatrixStatistics(
        matrix=name,
        n_columns=values.size,
        n_rows=int(here.counts[name].sum()),
        sum=total,
        mean=total / values.size,
        smallest=float(values.min()),
        largest=float(values.max()),
        active=float((values > _ACTIVE).mean()),
        entropy=entropy,
        evenness=entropy / np.log2(values.size) if values.size > 1 else 1.0,
        largest_share=float(np.sort(shares)[-n_largest:].sum()),
        cosine=None if other is None else _cosine(values, other),
    )


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 0 else float(not a.any() and not b.any())


def _place(name: str) -> tuple[int, int, str]:
    """Orders names by block number, those outside the blocks last."""
    first, *rest = name.split(".")
    is_block = first == "blk" and rest and rest[0].isdigit()
    return (0, int(rest[0]), name) if is_block else (1, 0, name)
