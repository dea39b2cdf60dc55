"""Measures the forward pass in float32 against this machine's own matrix product, and the memory it needs.

    python -m benchmarks.reference MODEL [--windows 4] [--n-ctx 512]
    python -m benchmarks.reference --full-size 2      # two blocks of MiMo-7B, MTP block and head; weights are zeros

CPU seconds are counted, so other programs disturb little: figures are per core. The states lie in a folder, as for a
text that does not fit into memory. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measured import machine
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.reference.model import ReferenceModel, open_reference
from mimo_gguf.reference.products import NUMPY
from mimo_gguf.reference.run import run_windows
from tests.full_size import STEP35, write_header_only


def product_gflops(n: int, columns: int, rows: int) -> float:
    """Measures numpy's product of `n` rows with a matrix: the fastest of five, in GFLOP per CPU second."""
    x, matrix = np.ones((n, columns), np.float32), np.ones((rows, columns), np.float32)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        _ = x @ matrix.T
        seconds.append(time.process_time() - started)
    return 2e-9 * n * columns * rows / min(seconds)


def measure(model: ReferenceModel, n_windows: int, n_ctx: int, folder: Path) -> dict[str, float]:
    """Measures a run of random tokens through all blocks, MTP blocks included."""
    geometry = model.geometry
    rng = np.random.default_rng(0)
    windows = [rng.integers(0, geometry.vocab_size, n_ctx).astype(np.int32) for _ in range(n_windows)]
    in_blocks = sum(info.n_elements for info in _matrices(model) if info.name.startswith("blk."))
    started = time.process_time()
    run_windows(model, windows, folder=folder, mtp=geometry.n_mtp > 0)
    cpu_s = time.process_time() - started
    n_tokens = n_windows * n_ctx
    return {
        "tokens": n_tokens,
        "cpu_s": cpu_s,
        "tokens_per_cpu_s": n_tokens / cpu_s,
        "block_tokens_per_cpu_s": n_tokens * geometry.block_count / cpu_s,
        "gflops": 2e-9 * in_blocks * n_tokens / cpu_s,
        "product_gflops": product_gflops(n_ctx, geometry.embedding_length, geometry.feed_forward_length),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20),
    }


def _matrices(model: ReferenceModel) -> list[TensorInfo]:
    return [tensor.info for tensor in model.source.tensors if len(tensor.info.shape) > 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", help="a checkpoint folder or a GGUF file")
    parser.add_argument("--full-size", type=int, metavar="BLOCKS", help="so many blocks of MiMo-7B instead")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--n-ctx", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source = options.model
        if options.full_size:
            source = write_header_only(Path(scratch) / "full.gguf", STEP35, "F16", n_trunk=options.full_size)
        with open_reference(source, products=NUMPY) as model:
            found = measure(model, options.windows, options.n_ctx, Path(scratch) / "states")
    for name, figure in found.items():
        print(f"{name:24}{figure:12.2f}")
    print(json.dumps({"machine": machine(), "model": str(options.model or "full size"), **found}))


if __name__ == "__main__":
    main()
