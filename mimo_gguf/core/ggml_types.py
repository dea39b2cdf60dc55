"""ggml's tensor types and llama.cpp's file types, as this package names them."""

from __future__ import annotations

from typing import Final

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as GgmlType

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import name_hint

__all__ = ["FLOAT_TYPES", "GgmlType", "block_size", "canonical_name", "ftype_name", "parse_ggml_type", "row_bytes"]

FLOAT_TYPES: Final = frozenset({GgmlType.F32, GgmlType.F16, GgmlType.BF16})

# Names people type for a type that GGUF spells differently.
_ALIASES: Final = {"FP16": "F16", "FP32": "F32", "BFLOAT16": "BF16", "FLOAT16": "F16", "FLOAT32": "F32"}


def canonical_name(text: str) -> str:
    """The name of a type as ggml spells it: `fp16` -> `F16`, `q4_k_m` -> `Q4_K_M`."""
    name = text.strip().upper().replace("-", "_")
    return _ALIASES.get(name, name)


def parse_ggml_type(text: str) -> GgmlType:
    """The tensor type that `text` names, in any spelling that `canonical_name` knows.

    Raises:
        UsageError: ggml has no such type.
    """
    try:
        return GgmlType.__members__[canonical_name(text)]
    except KeyError:
        hint = name_hint(text, [t.name for t in GgmlType])
        raise UsageError(f"ggml has no tensor type {text!r}", hint=hint) from None


def block_size(ggml_type: GgmlType) -> int:
    """The number of weights in one block."""
    return GGML_QUANT_SIZES[ggml_type][0]


def row_bytes(ggml_type: GgmlType, n_columns: int) -> int:
    """The number of bytes of one row of `n_columns` weights.

    Raises:
        ValueError: the row is not a whole number of blocks.
    """
    n_weights, n_bytes = GGML_QUANT_SIZES[ggml_type]
    blocks, rest = divmod(n_columns, n_weights)
    if rest:
        raise ValueError(f"a row of {n_columns} weights is not a whole number of {ggml_type.name} blocks")
    return blocks * n_bytes


def ftype_name(ftype: int) -> str:
    """llama.cpp's name for a value of general.file_type: `15` -> `Q4_K_M`."""
    try:
        name = LlamaFileType(ftype).name
    except ValueError:
        return f"unknown ({ftype})"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")
