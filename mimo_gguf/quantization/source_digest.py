"""Computes the digest of a source's weights, as a quantization run records it in the files that it makes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mimo_gguf.core.digests import CHUNK
from mimo_gguf.core.machine import available_cores
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.quantization.chunks import Chunk, cut_into_chunks
from mimo_gguf.quantization.output_digests import digest_tensors_read


def digest_source(source: ModelSource, chunk_weights: int, n_threads: int | None = None) -> str:
    """Computes the hex digest of a source's names, shapes, types and contents, whichever files they lie in.

    A file that was quantized from the same source has it as `mimo_gguf.source.digest`.

    Args:
        chunk_weights: weights in the chunks that the digest is made of, which the file records, too.
        n_threads: number of threads; None means one per core.

    Raises:
        CheckpointError, GgufError: the data end early.
        OSError: they cannot be read.
    """
    infos = [tensor.info for tensor in source.tensors]
    chunks = cut_into_chunks(infos, chunk_weights)

    def digest(chunk: Chunk) -> bytes:
        rows = np.empty((chunk.last - chunk.first, infos[chunk.tensor].row_bytes), np.uint8)
        source.tensors[chunk.tensor].read_rows(chunk.first, chunk.last, rows)
        return CHUNK.of(rows)

    found: list[list[bytes]] = [[] for _ in infos]
    with ThreadPoolExecutor(n_threads or available_cores()) as pool:
        for chunk, value in zip(chunks, pool.map(digest, chunks), strict=True):
            found[chunk.tensor].append(value)
    return digest_tensors_read(infos, found)
