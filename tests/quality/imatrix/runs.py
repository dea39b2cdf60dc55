"""Importance matrices of token windows, without text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.conversion.open_model import is_gguf, open_model
from mimo_gguf.core.importance_file import ImportanceSums, read_importance_sums
from mimo_gguf.quality.imatrix.run import ImatrixPlan, ImatrixReport, run_imatrix
from mimo_gguf.quality.imatrix.through_llama import LlamaOptions
from mimo_gguf.quality.texts import Window
from mimo_gguf.reference.model import ReferenceModel


def random_windows(n: int, n_ctx: int, *, vocab: int = 256, seed: int = 0) -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab, n_ctx).astype(np.int32) for _ in range(n)]


def measure(
    src: Path,
    windows: Sequence[NDArray[np.int32]],
    out: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    exact: bool = True,
    devices: tuple[int, ...] | None = None,
    **changes: Any,
) -> ImatrixReport:
    """The importance matrix of a GGUF or a checkpoint on windows of one size."""
    with open_model(str(src)) as source:
        model = ReferenceModel(source)
        options: dict[str, Any] = {
            "source": source,
            "windows": tuple(Window("test", tokens) for tokens in windows),
            "n_ctx": len(windows[0]),
            "mtp": model.n_mtp_blocks > 0,
            "output": True,
            "through_llama": is_gguf(str(src)),
            "datasets": ("test",),
            "texts": "",
            "out": out,
        }
        plan = ImatrixPlan(**options | changes)
        llama = LlamaOptions(plan.n_ctx, plan.mtp, plan.output, n_threads=1, exact=exact, devices=devices)
        return run_imatrix(plan, model, llama, on_progress)


def measured(src: Path, windows: Sequence[NDArray[np.int32]], out: Path, **options: Any) -> ImportanceSums:
    return read_importance_sums(measure(src, windows, out, **options).path)


def difference(a: ImportanceSums, b: ImportanceSums) -> float:
    """The largest difference of two sums, relative to them and the mean of the matrix's columns."""
    assert a.sums.keys() == b.sums.keys()
    assert all(np.array_equal(a.counts[name], b.counts[name]) for name in a.sums)
    return max(
        float((np.abs(a.sums[name] - b.sums[name]) / (b.sums[name] + b.sums[name].mean())).max()) for name in a.sums
    )
