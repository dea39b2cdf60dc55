"""Block quantisers: rows of F32, F16 or BF16 weights to rows of any ggml type, byte-identical to libggml."""

from mimo_gguf.quantization.kernels.finite import first_f16_overflow, first_nonfinite
from mimo_gguf.quantization.kernels.registry import (
    Kernel,
    describe_kernels,
    have_to_compile,
    kernel_for,
    requires_importance,
)

__all__ = [
    "Kernel",
    "describe_kernels",
    "first_f16_overflow",
    "first_nonfinite",
    "have_to_compile",
    "kernel_for",
    "requires_importance",
]
