"""Running the quantizer in tests, and reading what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.model_source import Bytes, TensorInfo
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.report import QuantizeReport
from mimo_gguf.quantization.run import run_quantization


def quantize(source: Path, folder: Path, names: Sequence[str], **options: Any) -> QuantizeReport:
    """One run over `source` with an output per profile: `folder`/<name>.gguf."""
    folder.mkdir(exist_ok=True)
    with open_gguf(source) as model:
        requests = [OutputRequest(load_profile(name), folder / f"{name}.gguf") for name in names]
        return run_quantization(plan_quantization(model, requests, QuantizeOptions(**options)))


def read_tensors(path: Path) -> dict[str, tuple[TensorInfo, Bytes]]:
    """Every tensor of a file with its bytes."""
    tensors = {}
    with open_gguf(path) as model:
        for tensor in model.tensors:
            rows = np.empty((tensor.info.n_rows, tensor.info.row_bytes), np.uint8)
            tensor.read_rows(0, tensor.info.n_rows, rows)
            tensors[tensor.info.name] = tensor.info, rows
    return tensors


def differing_tensors(ours: Path, theirs: Path) -> list[str]:
    """Names of tensors that are not the same in both files: missing, of another type, or of other bytes."""
    mine, other = read_tensors(ours), read_tensors(theirs)
    return sorted(
        name
        for name in mine.keys() | other.keys()
        if name not in mine
        or name not in other
        or mine[name][0] != other[name][0]
        or not np.array_equal(mine[name][1], other[name][1])
    )


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
