"""How a model's tensors are cut into pieces of work.

A chunk is a range of rows of about two million weights: small enough that a lost one costs nothing, large enough that
the Python around it does not show and that a disk reads it at full speed (4 MiB of bf16: the whole model in 37 s rather
than in 47). Checksums are taken per chunk while its bytes are in the cache, so no pass over the data is spent on them;
a tensor's digest is the digest of its chunks' digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mimo_gguf.core.model_source import TensorInfo

CHUNK_WEIGHTS: Final = 1 << 21


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [first, last) of one tensor."""

    tensor: int
    first: int
    last: int


def chunk_rows(info: TensorInfo, chunk_weights: int) -> int:
    """Rows in a chunk of this tensor."""
    return max(1, chunk_weights // max(1, info.n_columns))


def cut_into_chunks(tensors: Sequence[TensorInfo], chunk_weights: int) -> tuple[Chunk, ...]:
    """The chunks of all tensors, in order."""
    return tuple(
        Chunk(number, first, min(first + step, info.n_rows))
        for number, info in enumerate(tensors)
        for step in (chunk_rows(info, chunk_weights),)
        for first in range(0, info.n_rows, step)
    )
