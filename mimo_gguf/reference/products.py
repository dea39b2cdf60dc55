"""Products of many rows with a matrix: by numpy's BLAS, or by torch on its GPU.

On a CPU numpy's OpenBLAS is the faster of the two (`benchmarks/LOG.md`). Each gives the same bits for the same input,
machine and number of threads; between the two the last places differ.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mimo_gguf.core.errors import UsageError
from mimo_gguf.reference.decode import Floats


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
    weights: Any

    def product(self, x: Floats) -> Floats:
        import torch

        out: Floats = (torch.from_numpy(x).to(self.weights.device) @ self.weights.T).cpu().numpy()
        return out


NUMPY: Final = Products("numpy", _NumpyMatrix)


def torch_products(device: str = "cuda") -> Products:
    """Products by torch on a device, in float32 without shortcuts (TF32 is off by torch's default).

    Raises:
        UsageError: torch is not installed, or does not see the device.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError("torch is not installed", hint="pip install torch, or leave the products to numpy")
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError("torch sees no GPU", hint="leave the products to numpy")
    return Products(f"torch on {device}", lambda weights: _TorchMatrix(torch.from_numpy(weights).to(device)))


def best_products() -> Products:
    """Torch's GPU if torch is installed and sees one, else numpy."""
    try:
        return torch_products()
    except UsageError:
        return NUMPY
