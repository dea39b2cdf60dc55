"""Estimates how long a plan takes on this machine: times kernels on random weights, the disk on some of the source."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mimo_gguf.core.data_file import FileBuffer
from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, block_size, row_bytes
from mimo_gguf.core.machine import available_cores
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.core.progress import Progress, Silence
from mimo_gguf.quantization.chunks import CHUNK_WEIGHTS, chunk_rows
from mimo_gguf.quantization.kernel_loading import load_kernels
from mimo_gguf.quantization.kernels import Kernel
from mimo_gguf.quantization.kernels.probe import stored_as
from mimo_gguf.quantization.plan import QuantizePlan

_COLUMNS: Final = 4096
_SAMPLE_S: Final = 0.05
_SAMPLE_CHUNKS: Final = 24  # about 100 MB
_SAMPLE_READERS: Final = 4
# CPU time beside the kernels, measured on the full model: reading, checking and hashing, and hashing and writing.
_READ_S_PER_BYTE: Final = 0.29e-9
_WRITE_S_PER_BYTE: Final = 0.9e-9
_START_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class TimeExpected:
    """The seconds that a run will take, and what they are made of.

    Attributes:
        computing_s: kernels, checks, checksums and copies, spread over the plan's threads.
        reading_s: reading the source at the speed of a sample; None if there are no weights to sample yet.
    """

    computing_s: float
    reading_s: float | None
    n_threads: int

    @property
    def total_s(self) -> float:
        """The seconds of the whole run: computing and reading overlap. Waiting for a slower disk is not counted."""
        return _START_S + max(self.computing_s, self.reading_s or 0.0)

    def as_json(self) -> dict[str, Any]:
        """The estimate as a JSON document."""
        return {"seconds": self.total_s, "computing_s": self.computing_s, "reading_s": self.reading_s}


def estimate_time(plan: QuantizePlan, *, weights_here: bool = True, progress: Progress | None = None) -> TimeExpected:
    """Estimates the time that a run of `plan` takes.

    Args:
        weights_here: whether the source's weights can be read; False if only headers were fetched.
        progress: gets a note if kernels have to be compiled first.

    Raises:
        MimoGgufError: the source cannot be read.
        BackendError: libggml cannot write one of the types, or cannot be loaded.
    """
    read_bytes = sum(tensor.info.n_bytes for tensor in plan.source.tensors)
    written_bytes = sum(output.n_bytes for output in plan.outputs)
    n_threads = min(plan.options.n_threads or available_cores(), available_cores())
    cpu_s = (
        _kernel_seconds(plan, progress or Silence()) + _READ_S_PER_BYTE * read_bytes + _WRITE_S_PER_BYTE * written_bytes
    )
    reading_s = read_bytes / _bytes_per_second(plan.source) if weights_here else None
    return TimeExpected(cpu_s / n_threads, reading_s, n_threads)


def _kernel_seconds(plan: QuantizePlan, progress: Progress) -> float:
    """The seconds that all kernels of a run take on one thread."""
    weights: Counter[tuple[GgmlType, GgmlType, bool]] = Counter()
    for output in plan.outputs:
        for tensor in output.tensors:
            stored = tensor.source.info.ggml_type
            if stored in FLOAT_TYPES and tensor.info.ggml_type is not stored:
                weights[tensor.info.ggml_type, stored, tensor.importance is not None] += tensor.info.n_elements
    kernels = load_kernels(weights, progress, plan.options.search)
    return sum(count / _weights_per_second(kernels[key], key[2]) for key, count in weights.items())


def _bytes_per_second(source: ModelSource) -> float:
    """Measures the reading speed in the middle of the largest tensor, with several readers, as the workers read."""
    tensor = max(source.tensors, key=lambda tensor: tensor.info.n_bytes)
    n_rows = chunk_rows(tensor.info, CHUNK_WEIGHTS)
    middle = tensor.info.n_rows // 2
    firsts = range(middle, max(middle + 1, min(middle + _SAMPLE_CHUNKS * n_rows, tensor.info.n_rows - n_rows)), n_rows)

    def read(first: int) -> int:
        last = min(first + n_rows, tensor.info.n_rows)
        n_bytes = (last - first) * tensor.info.row_bytes
        memory = FileBuffer(n_bytes).at(tensor.offset + first * tensor.info.row_bytes, n_bytes)
        try:
            tensor.read_rows(first, last, memory.reshape(last - first, tensor.info.row_bytes))
        except OSError as error:
            raise MimoGgufError(
                f"{tensor.origin}: cannot be read: {error.strerror or error}", hint="check the disk"
            ) from None
        return n_bytes

    started = time.perf_counter()
    with ThreadPoolExecutor(_SAMPLE_READERS) as pool:
        n_bytes = sum(pool.map(read, firsts))
    return n_bytes / max(time.perf_counter() - started, 1e-9)


def _weights_per_second(kernel: Kernel, with_importance: bool) -> float:
    """Measures a kernel on one thread. Rows are added until the sample takes long enough for the clock."""
    n_columns = max(_COLUMNS, block_size(kernel.ggml_type))
    rng = np.random.default_rng(0)
    importance = rng.random(n_columns, np.float32) if with_importance else None
    n_rows = 1
    while True:
        values = rng.standard_normal((n_rows, n_columns), np.float32)
        rows = stored_as(values, kernel.source_type)
        out = np.empty((n_rows, row_bytes(kernel.ggml_type, n_columns)), np.uint8)
        kernel(rows, out, importance)
        started = time.perf_counter()
        kernel(rows, out, importance)
        elapsed = time.perf_counter() - started
        if elapsed > _SAMPLE_S or n_rows >= 512:
            return n_rows * n_columns / max(elapsed, 1e-9)
        n_rows *= 4
