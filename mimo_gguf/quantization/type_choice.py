"""Chooses one ggml type per tensor, with the reason, from a profile and a model's geometry.

The first of these that applies decides: a tensor that is never quantized; an option for the embedding or output matrix;
--tensor-type; the MTP rule; the profile's rules; its default. If the shape or a missing importance matrix forbids that
type, a fallback replaces it.
Source: https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-quant.cpp
(tensor_allows_quantization, llama_tensor_get_type, tensor_type_fallback, tensor_requires_imatrix).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import Geometry, block_number
from mimo_gguf.core.ggml_types import GgmlType, block_size
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.quantization.profiles import NEED_IMPORTANCE, Layer, MtpRule, Profile, parse_weight_type

EMBEDDING: Final = "token_embd.weight"
OUTPUT: Final = "output.weight"

# If rows are not a whole number of blocks: a type with blocks of 32 and about the same bits. F16 if that fails, too.
_RAGGED_FALLBACK: Final[Mapping[GgmlType, GgmlType]] = {
    **dict.fromkeys(
        (
            GgmlType.IQ1_S, GgmlType.IQ1_M, GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ2_S, GgmlType.IQ3_XXS,
            GgmlType.IQ3_S, GgmlType.IQ4_XS,
        ),
        GgmlType.IQ4_NL,
    ),
    GgmlType.Q2_K: GgmlType.Q4_0,
    GgmlType.Q3_K: GgmlType.Q4_0,
    GgmlType.TQ1_0: GgmlType.Q4_0,
    GgmlType.TQ2_0: GgmlType.Q4_0,
    GgmlType.Q4_K: GgmlType.Q5_0,
    GgmlType.Q5_K: GgmlType.Q5_1,
    GgmlType.Q6_K: GgmlType.Q8_0,
}  # fmt: skip

# The types that libggml cannot write at all without importance weights.
_IMPOSSIBLE_ALONE: Final = frozenset({GgmlType.IQ2_XXS, GgmlType.IQ2_XS, GgmlType.IQ1_S})


@dataclass(frozen=True, slots=True)
class TypeOptions:
    """The choices that the user has about types, besides the profile.

    Attributes:
        mtp: rule for the MTP blocks in place of the profile's. If importance weights are missing, the profile's
            `without_imatrix` still decides.
        tensor_types: (regular expression searched in the tensor's name, type); the first that matches decides. An
            override changes only the tensors that it matches. In llama-quantize it changes others, too, because the
            layer rules count the tensors that are left.
    """

    mtp: MtpRule | None = None
    tensor_types: tuple[tuple[re.Pattern[str], GgmlType], ...] = ()
    output_type: GgmlType | None = None
    token_embedding_type: GgmlType | None = None


@dataclass(frozen=True, slots=True)
class TypeChoice:
    """The type that one tensor gets.

    Attributes:
        why: the reason, in words.
        fallback_from: the type that was wanted, if the shape or a missing importance entry forbade it.
        lacks_importance: whether the type needs importance weights and there are none for this tensor.
    """

    info: TensorInfo
    why: str
    fallback_from: GgmlType | None = None
    lacks_importance: bool = False


@dataclass(frozen=True, slots=True)
class ImportanceGiven:
    """Whether an importance matrix is given, and for which tensors."""

    given: bool = False
    names: Collection[str] = field(default=frozenset())


def choose_types(
    profile: Profile,
    geometry: Geometry,
    tensors: Sequence[TensorInfo],
    options: TypeOptions = TypeOptions(),
    importance: ImportanceGiven = ImportanceGiven(),
) -> tuple[TypeChoice, ...]:
    """Chooses the type of every tensor, in the order given."""
    tied = all(info.name != OUTPUT for info in tensors)
    return tuple(_choose(profile, geometry, info, options, importance, tied) for info in tensors)


def check_options(options: TypeOptions, geometry: Geometry, tensors: Sequence[TensorInfo], where: str) -> None:
    """Raises UsageError for an option that matches nothing in this model: it is misspelled, or meant for another."""
    matrices = [info.name for info in tensors if kept_reason(info) is None]
    for pattern, _ in options.tensor_types:
        if not any(pattern.search(name) for name in matrices):
            raise UsageError(
                f"--tensor-type {pattern.pattern}: no matrix of {where} has such a name",
                hint="names are like blk.0.ffn_down.weight; norms and biases keep their type",
            )
    if options.mtp is not None and options.mtp.ggml_type is not None and not geometry.n_mtp:
        raise UsageError(f"--mtp-type: {where} has no MTP layer", hint="leave --mtp-type out")


def parse_tensor_type(text: str) -> tuple[re.Pattern[str], GgmlType]:
    """Reads PATTERN=TYPE, like `ffn_down=Q6_K`; the pattern is a regular expression searched in tensor names.

    Raises:
        UsageError: another form, not a regular expression, or no such type.
    """
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"--tensor-type {text!r} is not PATTERN=TYPE", hint="for example --tensor-type ffn_down=Q6_K")
    try:
        return re.compile(pattern), parse_weight_type(name)
    except re.error as error:
        raise UsageError(
            f"--tensor-type {text!r}: {pattern!r} is not a regular expression: {error}",
            hint=r"for example --tensor-type 'blk\.[0-3]\.ffn_down=Q6_K'",
        ) from None


def kept_reason(info: TensorInfo) -> str | None:
    """The reason why a tensor keeps its type in every file, or None if it may be quantized."""
    if not info.name.endswith("weight"):
        return "a bias: small, and added as it is"
    if info.name.endswith("_norm.weight"):
        return "a norm's gain: small, and multiplies everything"
    if all(extent == 1 for extent in info.shape[:-1]):
        return "a vector: small, and multiplies everything"
    return None


def _choose(
    profile: Profile,
    geometry: Geometry,
    info: TensorInfo,
    options: TypeOptions,
    importance: ImportanceGiven,
    tied: bool,
) -> TypeChoice:
    if (reason := kept_reason(info)) is not None:
        return TypeChoice(info, reason)
    ggml_type, why = _wanted_type(profile, geometry, info, options, importance, tied)
    wanted = ggml_type
    if info.n_columns % block_size(ggml_type):
        ggml_type = _fit_columns(ggml_type, info.n_columns)
        why = f"rows of {info.n_columns} weights are not a whole number of {wanted.name} blocks"
    is_copied = ggml_type is info.ggml_type
    lacks = not is_copied and needs_importance(profile, info.name, ggml_type) and info.name not in importance.names
    if lacks and _is_mtp(info, geometry):
        why = f"{ggml_type.name} needs importance weights, and there are none for this tensor"
        ggml_type, lacks = _fit_columns(profile.mtp.without_imatrix, info.n_columns), False
    chosen = TensorInfo(info.name, info.shape, ggml_type)
    return TypeChoice(chosen, why, wanted if ggml_type is not wanted else None, lacks)


def _wanted_type(
    profile: Profile,
    geometry: Geometry,
    info: TensorInfo,
    options: TypeOptions,
    importance: ImportanceGiven,
    tied: bool,
) -> tuple[GgmlType, str]:
    if info.name == EMBEDDING and options.token_embedding_type is not None:
        return options.token_embedding_type, "--token-embedding-type"
    # A tied embedding is also the output matrix, and gets that matrix's type.
    name = OUTPUT if tied and info.name == EMBEDDING else info.name
    if name == OUTPUT and options.output_type is not None:
        return options.output_type, "--output-type"
    for pattern, ggml_type in options.tensor_types:
        if pattern.search(info.name):
            return ggml_type, f"--tensor-type {pattern.pattern}"
    mtp = options.mtp or profile.mtp
    if mtp.ggml_type is not None and _is_mtp(info, geometry):
        return mtp.ggml_type, "--mtp-type" if options.mtp else "the profile's rule for the MTP block"
    return _by_rules(profile, geometry, info, name, importance)


def _by_rules(
    profile: Profile, geometry: Geometry, info: TensorInfo, name: str, importance: ImportanceGiven
) -> tuple[GgmlType, str]:
    block = block_number(name)
    layer = Layer(
        i=-1 if block is None else block,
        n=geometry.block_count,
        n_gqa=geometry.n_gqa,
        with_imatrix=importance.given,
        whole_blocks=info.n_columns % block_size(profile.default) == 0,
    )
    for rule in profile.rules:
        if rule.applies(name, layer):
            return rule.ggml_type, rule.why
    return profile.default, "the type of this file"


def _fit_columns(ggml_type: GgmlType, n_columns: int) -> GgmlType:
    for candidate in (ggml_type, _RAGGED_FALLBACK.get(ggml_type, ggml_type)):
        if n_columns % block_size(candidate) == 0:
            return candidate
    return GgmlType.F16


def needs_importance(profile: Profile, tensor_name: str, ggml_type: GgmlType) -> bool:
    """Whether a tensor of this type must not be written without an importance entry."""
    if tensor_name in (EMBEDDING, OUTPUT):
        return ggml_type in _IMPOSSIBLE_ALONE
    return ggml_type in NEED_IMPORTANCE or ggml_type in profile.needs_imatrix


def _is_mtp(info: TensorInfo, geometry: Geometry) -> bool:
    block = block_number(info.name)
    return block is not None and block >= geometry.n_trunk
