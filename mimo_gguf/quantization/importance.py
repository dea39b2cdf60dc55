"""Importance matrices: how strongly each input column of a matrix is used, as llama-imatrix measures it.

Both of its formats are read: GGUF (`<tensor>.in_sum2` with `<tensor>.counts`) and the older binary .dat. The division
is done in float32, as llama-quantize does it, so that results are identical.
Source: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/common/imatrix-loader.cpp and tools/quantize/quantize.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import GgufError, UsageError
from mimo_gguf.core.importance_file import DOCUMENT, HINT, Sums, parse_importance_sums
from mimo_gguf.core.model_source import Metadata, string, uint32

# Between these bounds of an entry's largest value ggml's float32 sums work. Below 1e-30 and above 1e25 the values have
# no effect any more; at 1e-45 and 1e36 some types silently write zeros, noise or NaN. Means of squares of activations
# are between 1e-6 and 1e6.
SMALLEST_USABLE: Final = 1e-18
LARGEST_USABLE: Final = 1e18
# A column with less than this counts as without importance: ggml's products with it vanish.
_NOTHING: Final = 1e-30


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """The importance weights of a model.

    Attributes:
        columns: tensor name -> float32 array of shape (n_columns,).
        dataset: name of the text that it was measured on; empty if the file does not give it.
        n_chunks: number of chunks of that text; 0 if the file does not give it.
    """

    path: Path
    columns: Mapping[str, NDArray[np.float32]] = field(repr=False)
    dataset: str
    n_chunks: int

    def metadata(self) -> Metadata:
        """The keys llama-quantize records in a file made with this matrix."""
        entries = {
            "quantize.imatrix.file": string(_shortened(str(self.path))),
            "quantize.imatrix.entries_count": uint32(len(self.columns)),
        }
        if self.dataset:
            entries["quantize.imatrix.dataset"] = string(_shortened(self.dataset))
        if self.n_chunks > 0:
            entries["quantize.imatrix.chunks_count"] = uint32(self.n_chunks)
        return entries


def read_importance(path: Path) -> ImportanceMatrix:
    """Reads an importance matrix in either format.

    Raises:
        GgufError: no such file, neither format, truncated, or values that a mean of squares cannot have.
    """
    data = DOCUMENT.read_bytes(path)
    with np.errstate(all="ignore"):  # what is not finite is refused below
        if data[:4] == b"GGUF":
            columns, dataset, n_chunks = _from_gguf(path, data)
        else:
            columns, dataset, n_chunks = _from_dat(path, data)
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise GgufError(f"{path}: importance of {name} is not finite", hint=HINT)
        if (values < 0).any():
            raise GgufError(f"{path}: importance of {name} is negative, which a mean of squares cannot be", hint=HINT)
    return ImportanceMatrix(path, columns, dataset, n_chunks)


def check_columns(importance: ImportanceMatrix, tensor_name: str, n_columns: int) -> NDArray[np.float32] | None:
    """Finds a tensor's importance weights, and refuses those that cannot be used.

    Returns:
        A float32 array of shape (n_columns,), or None if the matrix has no entry for this tensor.

    Raises:
        UsageError: the entry has another width.
        GgufError: its values are so small or large that ggml would write zeros, noise or NaN with them.
    """
    values = importance.columns.get(tensor_name)
    if values is None:
        return None
    if values.size != n_columns:
        raise UsageError(
            f"{importance.path}: {tensor_name} has {values.size} importance values, its rows have {n_columns} weights",
            hint="the importance matrix is of another model",
        )
    largest = float(values.max(initial=0))
    if not SMALLEST_USABLE <= largest <= LARGEST_USABLE:
        what = f"at most {largest:.3g}" if largest else "zero in every column"
        raise GgufError(f"{importance.path}: importance of {tensor_name} is {what}: that would spoil it", hint=HINT)
    return values


def count_idle(values: NDArray[np.float32]) -> int:
    """The number of columns that have no importance at all."""
    return int(np.count_nonzero(values < _NOTHING))


def _shortened(text: str) -> str:
    """Cuts a text to 127 bytes, which is what llama.cpp's metadata overrides can hold."""
    return text.encode(errors="replace")[:127].decode(errors="ignore")


def _from_gguf(path: Path, data: bytes) -> tuple[dict[str, NDArray[np.float32]], str, int]:
    read = parse_importance_sums(path, data)
    columns = {name: _normalised(read.sums[name], read.counts[name]) for name in read.sums}
    return columns, read.datasets[0] if read.datasets else "", read.n_chunks


def _normalised(sums: Sums, counts: Sums) -> NDArray[np.float32]:
    whole = np.floor(np.abs(counts) + np.float32(0.5)) * np.sign(counts)  # lround: halves away from zero
    quotients = sums / np.where(whole > 0, whole, 1).astype(np.float32)[:, None]
    return np.where(whole[:, None] > 0, quotients, np.float32(1)).reshape(-1).astype(np.float32, copy=False)


@dataclass(slots=True)
class _Reader:
    """Reads a .dat file from its start to its end."""

    path: Path
    data: bytes
    at: int = 0

    def bytes_of(self, n_bytes: int) -> bytes:
        """Reads the next `n_bytes` bytes."""
        if not 0 <= n_bytes <= len(self.data) - self.at:
            raise GgufError(f"{self.path}: not an importance matrix, or a truncated one (byte {self.at})", hint=HINT)
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def number(self) -> int:
        """Reads a 32-bit number."""
        return int.from_bytes(self.bytes_of(4), "little", signed=True)

    def text(self) -> str:
        """Reads a text with its length before it."""
        return self.bytes_of(self.number()).decode(errors="replace")

    def at_end(self) -> bool:
        """Whether the whole file is read."""
        return self.at == len(self.data)


def _from_dat(path: Path, data: bytes) -> tuple[dict[str, NDArray[np.float32]], str, int]:
    reader = _Reader(path, data)
    n_entries = reader.number()
    if n_entries < 1:
        raise GgufError(f"{path}: not an importance matrix", hint=HINT)
    columns: dict[str, NDArray[np.float32]] = {}
    for _ in range(n_entries):
        name = reader.text()
        n_calls = reader.number()
        values = np.frombuffer(reader.bytes_of(4 * reader.number()), np.float32)
        columns[name] = values / np.float32(n_calls) if n_calls > 0 else values
    if reader.at_end():
        return columns, "", 0
    n_chunks = reader.number()
    return columns, "" if reader.at_end() else reader.text(), n_chunks
