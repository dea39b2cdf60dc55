"""Finding the first weight that must not be quantised: Inf or NaN, or a value that F16 cannot hold.

Both questions are one: the first weight whose magnitude bits reach a limit, because the bits of |x| order like |x|
and Inf and NaN lie above every finite value.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mimo_gguf.core.ggml_types import GgmlType

_BITS: Final[dict[GgmlType, type[np.unsignedinteger[Any]]]] = {
    GgmlType.F32: np.uint32,
    GgmlType.F16: np.uint16,
    GgmlType.BF16: np.uint16,
}
_INFINITY: Final = {GgmlType.F32: 0x7F800000, GgmlType.F16: 0x7C00, GgmlType.BF16: 0x7F80}
# 65520 and above round to infinity in F16; bf16 has nothing between 65280 and 65536.
_ABOVE_F16: Final = {GgmlType.F32: 0x477FF000, GgmlType.F16: 0x7C00, GgmlType.BF16: 0x4780}
_STRIP: Final = 1 << 16


def first_nonfinite(src: NDArray[Any], source_type: GgmlType) -> tuple[int, int] | None:
    """Row and column of the first Inf or NaN, or None.

    Args:
        src: C-contiguous rows x cols in the storage of `source_type` (F32, F16, or BF16 as uint16), or its bytes.
    """
    return _first_reaching(src, source_type, _INFINITY)


def first_f16_overflow(src: NDArray[Any], source_type: GgmlType) -> tuple[int, int] | None:
    """Row and column of the first weight that becomes infinite in F16 (or is no finite number), or None."""
    return _first_reaching(src, source_type, _ABOVE_F16)


def _first_reaching(src: NDArray[Any], source_type: GgmlType, limits: dict[GgmlType, int]) -> tuple[int, int] | None:
    bits = src.view(_BITS[source_type])
    flat = bits.reshape(-1)
    at = _scan(flat, limits[source_type], _skip(flat, source_type, limits[GgmlType.F32]))
    return None if at is None else divmod(at, bits.shape[1])


def _skip(bits: NDArray[Any], source_type: GgmlType, f32_limit: int) -> int:
    """How many weights from the start are surely below the limit; 0 without numba."""
    try:
        from mimo_gguf.quantization.kernels.numba_kernels import NUMBA_STORAGE
        from mimo_gguf.quantization.kernels.scan import first_suspect_strip
    except ImportError:
        return 0
    return int(first_suspect_strip(bits.view(NUMBA_STORAGE[source_type]), f32_limit))


def _scan(bits: NDArray[Any], limit: int, start: int) -> int | None:
    magnitude = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    for first in range(start, bits.size, _STRIP):
        reaching = (bits[first : first + _STRIP] & magnitude) >= limit
        if reaching.any():
            return first + int(reaching.argmax())
    return None
