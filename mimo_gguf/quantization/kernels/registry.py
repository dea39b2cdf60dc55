"""Which kernel serves which type: ours where it is proven identical to libggml on this machine, else libggml's.

Proven means: the first time a kernel is asked for, it and libggml quantise the probe, and every byte agrees. Where
they do not (a libggml built with fused multiply-add, a compiler's mistake), or numba does not work here, libggml
does the work and `Kernel.note` says why.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, row_bytes
from mimo_gguf.quantization.kernels.libggml import QUANTIZABLE_TYPES, load_libggml
from mimo_gguf.quantization.kernels.probe import probe_importances, probe_rows

Importance = NDArray[np.float32]
Run = Callable[[NDArray[Any], NDArray[np.uint8], Importance | None], None]

# Set to "libggml" to do without our own kernels.
CHOICE_VARIABLE: Final = "MIMO_GGUF_KERNELS"

STORAGE: Final[dict[GgmlType, type[np.generic]]] = {
    GgmlType.F32: np.float32,
    GgmlType.F16: np.float16,
    GgmlType.BF16: np.uint16,
}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Kernel:
    """Turns rows of one source type into rows of one ggml type; byte-identical to libggml. Call it from any thread.

    Attributes:
        with_importance: whether calls carry an importance row.
        name: what runs, for people: "numba, 32 lanes of AVX2" or "libggml 0.25.3".
        note: why this one.
    """

    ggml_type: GgmlType
    source_type: GgmlType
    with_importance: bool
    name: str
    note: str
    run: Run = field(repr=False)

    def __call__(self, src: NDArray[Any], out: NDArray[np.uint8], importance: Importance | None = None) -> None:
        """Quantises `src` into `out`; releases the GIL while it works and allocates nothing large.

        Args:
            src: finite weights, C-contiguous, rows x cols in the source type's storage: float32, float16, or bf16's
                bits as uint16. A view of the same bytes as uint8 or uint16 will do.
            out: C-contiguous uint8, rows x row_bytes(ggml_type, cols).
            importance: float32[cols], this tensor's row of an importance matrix; exactly if `with_importance`.

        Raises:
            ValueError: shapes or layouts that do not fit together.
        """
        rows = _as_rows(src, self.source_type)
        _check_output(rows, out, self.ggml_type)
        if (importance is not None) is not self.with_importance:
            raise ValueError(f"this {self.ggml_type.name} kernel was asked for with_importance={self.with_importance}")
        if importance is not None:
            _check_importance(rows, importance)
        if rows.size:
            self.run(rows, out, importance)


def kernel_for(ggml_type: GgmlType, source_type: GgmlType, with_importance: bool = False) -> Kernel:
    """The kernel that turns `source_type` (F32, F16, BF16) rows into `ggml_type` rows.

    The first request for a type compiles or loads our kernel for it and runs the probe (from 10 ms to seconds).

    Args:
        with_importance: whether calls will carry an importance row.

    Raises:
        BackendError: libggml cannot write the type, needs an importance matrix for it, or cannot be loaded.
    """
    if source_type not in FLOAT_TYPES or ggml_type not in QUANTIZABLE_TYPES:
        raise BackendError(f"libggml cannot quantize {source_type.name} to {ggml_type.name}")
    with _lock:
        return _kernel(ggml_type, source_type, with_importance)


def have_to_compile() -> bool:
    """Whether no kernel of ours has been compiled on this machine yet: the first requests will take seconds."""
    if os.environ.get(CHOICE_VARIABLE) == "libggml":
        return False
    try:
        from mimo_gguf.quantization.kernels import jit
    except Exception:  # as in numba_run: libggml does the work
        return False
    return not jit.cache_folder().is_dir()


def requires_importance(ggml_type: GgmlType) -> bool:
    """Whether libggml refuses to write this type without an importance matrix."""
    return load_libggml().requires_importance(ggml_type)


def describe_kernels(source_type: GgmlType = GgmlType.BF16) -> tuple[Kernel, ...]:
    """The kernel of every type that can be written from `source_type`; read `name` and `note`."""
    types = sorted(QUANTIZABLE_TYPES, key=int)
    return tuple(kernel_for(t, source_type, with_importance=requires_importance(t)) for t in types)


@cache
def _kernel(ggml_type: GgmlType, source_type: GgmlType, with_importance: bool) -> Kernel:
    if ggml_type is source_type:
        return Kernel(ggml_type, source_type, with_importance, "copy", "the same type", _copy)
    reference = libggml_run(ggml_type, source_type, with_importance)
    name, note, ours = numba_run(ggml_type, source_type)
    if ours is not None:
        note = _difference(ours, reference, ggml_type, source_type, probe_importances() if with_importance else [None])
        if not note:
            return Kernel(ggml_type, source_type, with_importance, name, "probe identical to libggml", ours)
    return Kernel(ggml_type, source_type, with_importance, f"libggml {load_libggml().version}", note, reference)


def libggml_run(ggml_type: GgmlType, source_type: GgmlType, with_importance: bool) -> Run:
    library = load_libggml()
    if library.requires_importance(ggml_type) and not with_importance:
        raise BackendError(
            f"{ggml_type.name} cannot be written without an importance matrix", hint="give one with --imatrix"
        )

    def run(src: NDArray[Any], out: NDArray[np.uint8], importance: Importance | None) -> None:
        library.quantize(src, source_type, ggml_type, out, importance)

    return run


def numba_run(ggml_type: GgmlType, source_type: GgmlType) -> tuple[str, str, Run | None]:
    """Name and callable of our kernel, or the reason why there is none."""
    if os.environ.get(CHOICE_VARIABLE) == "libggml":
        return "", f"{CHOICE_VARIABLE}=libggml", None
    try:
        from mimo_gguf.quantization.kernels import numba_kernels
    except Exception as error:  # numba fails in many ways where LLVM or the cache folder is unusual
        return "", f"numba does not work here: {error}", None
    kernel = numba_kernels.NUMBA_KERNELS.get(ggml_type)
    if kernel is None:
        return "", "no kernel of ours for this type", None
    storage = numba_kernels.NUMBA_STORAGE[source_type]

    def run(src: NDArray[Any], out: NDArray[np.uint8], importance: Importance | None) -> None:
        kernel(src.view(storage).reshape(-1), out.reshape(-1), importance)

    return f"numba, 32 lanes of {numba_kernels.instruction_set()}", "", run


def _difference(
    ours: Run, reference: Run, ggml_type: GgmlType, source_type: GgmlType, importances: Sequence[Importance | None]
) -> str:
    """Why our kernel cannot be trusted here; empty where every byte of the probe agrees."""
    rows = probe_rows(source_type)
    shape = (len(rows), row_bytes(ggml_type, rows.shape[1]))
    expected, got = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    wrong = 0
    for importance in importances:
        reference(rows, expected, importance)
        try:
            ours(rows, got, importance)
        except Exception as error:  # whatever compiling raises, libggml still works
            return f"our kernel does not compile here: {type(error).__name__}: {error}".partition("\n")[0]
        wrong += int(np.count_nonzero(expected != got))
    return f"our kernel differs from libggml in {wrong} bytes of the probe" if wrong else ""


def _copy(src: NDArray[Any], out: NDArray[np.uint8], importance: Importance | None) -> None:
    np.copyto(out, src.view(np.uint8))


def _as_rows(src: NDArray[Any], source_type: GgmlType) -> NDArray[Any]:
    if src.ndim != 2 or not src.flags.c_contiguous:
        raise ValueError(f"rows must be a C-contiguous matrix, got shape {src.shape}")
    return src.view(STORAGE[source_type])


def _check_output(src: NDArray[Any], out: NDArray[np.uint8], ggml_type: GgmlType) -> None:
    expected = (src.shape[0], row_bytes(ggml_type, src.shape[1]))
    if out.shape != expected or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"{ggml_type.name} output must be contiguous uint8 {expected}, got {out.dtype} {out.shape}")


def _check_importance(src: NDArray[Any], importance: Importance) -> None:
    expected = (src.shape[1],)
    if importance.shape != expected or importance.dtype != np.float32 or not importance.flags.c_contiguous:
        raise ValueError(f"importance must be float32 {expected}, got {importance.dtype} {importance.shape}")
