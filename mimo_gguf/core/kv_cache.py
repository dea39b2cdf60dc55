"""The KV cache as llama.cpp lays it out: its possible types, and the number of its cells."""

from __future__ import annotations

from typing import Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import Geometry
from mimo_gguf.core.ggml_types import GgmlType, block_size, canonical_name

CONTEXT_STEP: Final = 256  # llama.cpp rounds n_ctx up to a multiple
MOST_CONTEXT: Final = 1 << 24  # tokens; beyond any model
MOST_SEQUENCES: Final = 256  # LLAMA_MAX_SEQ
# The types of a KV cache that llama.cpp offers (https://github.com/ggml-org/llama.cpp/blob/0c1e57098/common/arg.cpp).
KV_TYPES: Final = (
    GgmlType.F32, GgmlType.F16, GgmlType.BF16, GgmlType.Q8_0, GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.IQ4_NL,
    GgmlType.Q5_0, GgmlType.Q5_1,
)  # fmt: skip
_KV_HINT: Final = "one of: " + ", ".join(t.name.lower() for t in KV_TYPES)


def parse_kv_type(text: str) -> GgmlType:
    """The type of a KV cache that `text` names, in any spelling that `canonical_name` knows.

    Raises:
        UsageError: llama.cpp has no KV cache of such a type.
    """
    kind = GgmlType.__members__.get(canonical_name(text))
    if kind is None:
        raise UsageError(f"llama.cpp has no KV cache of type {text!r}", hint=_KV_HINT)
    check_kv_type(kind)
    return kind


def check_kv_type(kind: GgmlType) -> None:
    """Raises UsageError if llama.cpp has no KV cache of this type."""
    if kind not in KV_TYPES:
        raise UsageError(f"llama.cpp has no KV cache of type {kind.name}", hint=_KV_HINT)


def can_hold_heads(kind: GgmlType, geometry: Geometry) -> bool:
    """Whether a cache of `kind` can hold this model's heads: they must be whole numbers of its blocks."""
    return not any(length % block_size(kind) for length in (geometry.key_length, geometry.value_length))


def padded(n: int, step: int) -> int:
    """`n` rounded up to a multiple of `step`."""
    return -(-n // step) * step


def n_ctx_seq(n_ctx: int, n_seq_max: int) -> int:
    """The tokens of context of each of `n_seq_max` conversations: its share of `n_ctx`, as llama.cpp rounds it.

    Source: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-context.cpp (cparams.n_ctx_seq).
    """
    return padded(padded(n_ctx, CONTEXT_STEP) // n_seq_max, CONTEXT_STEP)
