"""How long the arithmetic of a plan takes on this machine, measured in a moment on random weights."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

import numpy as np

from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, block_size, row_bytes
from mimo_gguf.core.machine import available_cores
from mimo_gguf.quantization.kernels import Kernel, kernel_for
from mimo_gguf.quantization.plan import QuantizePlan

_COLUMNS: Final = 4096
_SAMPLE_S: Final = 0.05
_SIZES: Final = {GgmlType.F32: np.float32, GgmlType.F16: np.float16, GgmlType.BF16: np.uint16}


def estimate_seconds(plan: QuantizePlan) -> float:
    """Seconds of kernels on the plan's threads; reading and writing come on top where the disk is slower."""
    weights: Counter[tuple[GgmlType, GgmlType, bool]] = Counter()
    for output in plan.outputs:
        for tensor in output.tensors:
            stored = tensor.source.info.ggml_type
            if stored in FLOAT_TYPES and tensor.info.ggml_type is not stored:
                weights[tensor.info.ggml_type, stored, tensor.importance is not None] += tensor.info.n_elements
    n_threads = min(plan.options.n_threads or available_cores(), available_cores())
    return sum(count / _weights_per_second(kernel_for(*key), key[2]) for key, count in weights.items()) / n_threads


def _weights_per_second(kernel: Kernel, with_importance: bool) -> float:
    """Speed on one thread: rows are added until the sample takes long enough to be read off a clock."""
    n_columns = max(_COLUMNS, block_size(kernel.ggml_type))
    rng = np.random.default_rng(0)
    importance = rng.random(n_columns, np.float32) if with_importance else None
    n_rows = 1
    while True:
        values = rng.standard_normal((n_rows, n_columns), np.float32)
        rows = _stored_as(values, kernel.source_type)
        out = np.empty((n_rows, row_bytes(kernel.ggml_type, n_columns)), np.uint8)
        kernel(rows, out, importance)
        started = time.perf_counter()
        kernel(rows, out, importance)
        elapsed = time.perf_counter() - started
        if elapsed > _SAMPLE_S or n_rows >= 512:
            return n_rows * n_columns / max(elapsed, 1e-9)
        n_rows *= 4


def _stored_as(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]], source_type: GgmlType
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    if source_type is GgmlType.BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(_SIZES[source_type])
