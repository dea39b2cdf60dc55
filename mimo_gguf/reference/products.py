"""Products of many rows with a matrix: by numpy's BLAS, or by torch on its GPU.

On a CPU numpy's OpenBLAS is the faster of the two (`benchmarks/LOG.md`). Each gives the same bits for the same input,
machine and number of threads; between the two the last places differ.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.threads import blas_threads
from mimo_gguf.reference.decode import Floats

_DRIVERS: Final = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))  # NVIDIA, in WSL, AMD


@contextmanager
def product_threads(n_threads: int) -> Iterator[None]:
    """Lets numpy's products take so many threads, in the whole process, for a while.

    With 0 numpy's BLAS decides: one per core, if OPENBLAS_NUM_THREADS says nothing else.
    """
    with blas_threads(n_threads) if n_threads else nullcontext():
        yield


class Matrix(Protocol):
    """A matrix [rows, columns] that is ready to be multiplied."""

    def product(self, x: Floats) -> Floats:
        """x @ matrix.T: float32 [n, columns] -> float32 [n, rows]."""


@dataclass(frozen=True, slots=True)
class Products:
    """A way to compute products: its name, and what makes a matrix ready."""

    name: str
    prepare: Callable[[Floats], Matrix]


@dataclass(frozen=True, slots=True)
class _NumpyMatrix:
    weights: Floats

    def product(self, x: Floats) -> Floats:
        out: Floats = x @ self.weights.T
        return out


@dataclass(frozen=True, slots=True)
class _TorchMatrix:
    """A matrix in a device's memory, and in ours in case the device has no room for a product."""

    there: Any
    here: Floats

    def product(self, x: Floats) -> Floats:
        import torch

        try:
            out: Floats = (torch.from_numpy(x).to(self.there.device) @ self.there.T).cpu().numpy()
        except RuntimeError:  # out of memory is one, too
            out = x @ self.here.T
        return out


NUMPY: Final = Products("numpy", _NumpyMatrix)


def torch_products(device: str = "cuda") -> Products:
    """Products by torch on a device, in float32 without shortcuts (TF32 is off by torch's default).

    What the device has no room for is computed by numpy.

    Raises:
        UsageError: torch is not installed, or does not see the device.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError("torch is not installed", hint="pip install torch, or leave the products to numpy")
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("torch sees no GPU", hint="leave the products to numpy")

    def prepare(weights: Floats) -> Matrix:
        try:
            return _TorchMatrix(torch.from_numpy(weights).to(device), weights)
        except RuntimeError:
            return _NumpyMatrix(weights)

    return Products(f"torch on {device}", prepare)


@cache
def best_products() -> Products:
    """Torch's GPU if torch is installed and sees one, else numpy. Without a GPU's driver torch is not imported."""
    if sys.platform == "linux" and not any(device.exists() for device in _DRIVERS):
        return NUMPY
    try:
        return torch_products()
    except UsageError:
        return NUMPY
