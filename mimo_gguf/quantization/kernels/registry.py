"""Which kernel serves which type: ours where it is proven identical to libggml on this machine, else libggml's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, row_bytes
from mimo_gguf.quantization.kernels.libggml import QUANTIZABLE_TYPES, load_libggml

Run = Callable[[NDArray[Any], NDArray[np.uint8], "NDArray[np.float32] | None"], None]

STORAGE: Final[dict[GgmlType, type[np.generic]]] = {
    GgmlType.F32: np.float32,
    GgmlType.F16: np.float16,
    GgmlType.BF16: np.uint16,
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """Turns rows of one source type into rows of one ggml type; byte-identical to libggml. Call it from any thread.

    Attributes:
        name: what runs, for people: "numba, 16 lanes" or "libggml 0.25.3".
        note: why this one.
    """

    ggml_type: GgmlType
    source_type: GgmlType
    name: str
    note: str
    run: Run = field(repr=False)

    def __call__(
        self, src: NDArray[Any], out: NDArray[np.uint8], importance: NDArray[np.float32] | None = None
    ) -> None:
        """Quantises `src` into `out`; releases the GIL while it works.

        Args:
            src: C-contiguous, rows x cols, in the source type's storage: float32, float16 or bf16's bits as uint16.
                A uint8 or uint16 view of the same bytes will do.
            out: C-contiguous uint8, rows x row_bytes(ggml_type, cols).
            importance: float32[cols], this tensor's row of an importance matrix.

        Raises:
            ValueError: shapes or layouts that do not fit together.
        """
        rows = as_rows(src, self.source_type)
        _check(rows, out, importance, self.ggml_type)
        self.run(rows, out, importance)


def kernel_for(ggml_type: GgmlType, source_type: GgmlType, with_importance: bool = False) -> Kernel:
    """The kernel that turns `source_type` (F32, F16, BF16) rows into `ggml_type` rows.

    Args:
        with_importance: whether calls will carry an importance row.

    Raises:
        BackendError: libggml cannot write the type, needs an importance matrix for it, or cannot be loaded.
    """
    if source_type not in FLOAT_TYPES or ggml_type not in QUANTIZABLE_TYPES:
        raise BackendError(f"libggml cannot quantize {source_type.name} to {ggml_type.name}")
    return _kernel(ggml_type, source_type, with_importance)


@cache
def _kernel(ggml_type: GgmlType, source_type: GgmlType, with_importance: bool) -> Kernel:
    if ggml_type is source_type:
        return Kernel(ggml_type, source_type, "copy", "the same type", _copy)
    library = load_libggml()
    if library.requires_importance(ggml_type) and not with_importance:
        raise BackendError(
            f"{ggml_type.name} cannot be written without an importance matrix", hint="give one with --imatrix"
        )
    library.prepare(ggml_type)

    def run(src: NDArray[Any], out: NDArray[np.uint8], importance: NDArray[np.float32] | None) -> None:
        library.quantize(src, source_type, ggml_type, out, importance)

    return Kernel(ggml_type, source_type, f"libggml {library.version}", "no kernel of ours for this type", run)


def _copy(src: NDArray[Any], out: NDArray[np.uint8], importance: NDArray[np.float32] | None) -> None:
    np.copyto(out, src.view(np.uint8))


def as_rows(src: NDArray[Any], source_type: GgmlType) -> NDArray[Any]:
    """`src` seen in the storage of `source_type`: rows x cols.

    Raises:
        ValueError: not two-dimensional, not C-contiguous, or bytes that make no whole number of weights.
    """
    if src.ndim != 2 or not src.flags.c_contiguous:
        raise ValueError(f"rows must be a C-contiguous matrix, got shape {src.shape}")
    return src.view(STORAGE[source_type])


def _check(
    src: NDArray[Any], out: NDArray[np.uint8], importance: NDArray[np.float32] | None, ggml_type: GgmlType
) -> None:
    n_rows, n_columns = src.shape
    expected = (n_rows, row_bytes(ggml_type, n_columns))
    if out.shape != expected or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"{ggml_type.name} output must be contiguous uint8 {expected}, got {out.dtype} {out.shape}")
    if importance is not None and (
        importance.shape != (n_columns,) or importance.dtype != np.float32 or not importance.flags.c_contiguous
    ):
        raise ValueError(f"importance must be float32 ({n_columns},), got {importance.dtype} {importance.shape}")
