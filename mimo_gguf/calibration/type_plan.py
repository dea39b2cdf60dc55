"""Decides the types of a calibrated file: which matrices are solved, which keep their type, and for how many bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from mimo_gguf.calibration.costs import with_feedback
from mimo_gguf.calibration.mix import Mix, Option, mixed_types, options_of, solve_mix
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import Geometry, block_number
from mimo_gguf.core.ggml_types import FLOAT_TYPES, GgmlType, block_size
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.core.units import format_size
from mimo_gguf.quantization.profiles import NEED_IMPORTANCE, Profile
from mimo_gguf.quantization.type_choice import (
    EMBEDDING,
    OUTPUT,
    ImportanceGiven,
    TypeChoice,
    TypeOptions,
    choose_types,
    kept_reason,
)

# solve: types of the blocks are solved, head and embedding keep the profile's; free: those are solved, too;
# profile: every matrix keeps the profile's type.
MixKind = Literal["solve", "free", "profile"]
MIXES: Final = get_args(MixKind)

Costs = Mapping[str, Mapping[GgmlType, float]]


@dataclass(frozen=True, slots=True)
class TypesWanted:
    """The types of a file before anything is solved.

    Attributes:
        choices: what the profile and the user's options give each tensor, as with an importance matrix for all.
        solved: the names of the matrices whose types will be solved.
    """

    profile: Profile
    choices: tuple[TypeChoice, ...] = field(repr=False)
    solved: frozenset[str] = field(repr=False)

    @property
    def n_bytes(self) -> int:
        """The bytes of all tensors by these choices."""
        return sum(choice.info.n_bytes for choice in self.choices)

    @property
    def n_weights(self) -> int:
        return sum(choice.info.n_elements for choice in self.choices)

    @property
    def kept(self) -> tuple[TypeChoice, ...]:
        """The choices of matrices that are not solved."""
        return tuple(
            choice for choice in self.choices if choice.info.name not in self.solved and not kept_reason(choice.info)
        )


@dataclass(frozen=True, slots=True)
class SolvedTypes:
    """The types of a file, and what they are predicted to cost.

    Attributes:
        mix: the solved matrices.
        types: the type of every matrix, solved or kept.
        before: the divergence that the profile's own types are predicted to cause in plain importance encoding; None
            if no costs were measured.
        after: the divergence predicted for these types with error feedback; None likewise.
    """

    mix: Mix
    types: Mapping[str, GgmlType]
    before: float | None
    after: float | None


def wanted_types(
    profile: Profile, geometry: Geometry, tensors: Sequence[TensorInfo], options: TypeOptions, mix: MixKind
) -> TypesWanted:
    """What a profile and the user's options give each tensor, and which of the matrices are to be solved.

    Raises:
        UsageError: a type that calibration does not write.
    """
    names = {info.name for info in tensors}
    choices = choose_types(profile, geometry, tensors, options, ImportanceGiven(True, names))
    for choice in choices:
        if choice.info.ggml_type in NEED_IMPORTANCE and not kept_reason(choice.info):
            raise UsageError(
                f"{profile.name}: calibration does not write {choice.info.ggml_type.name}",
                hint="use one of Q2_K, Q3_K_M, IQ4_XS, Q4_K_M, Q5_K_M, Q6_K, Q8_0",
            )
    solved = frozenset(
        choice.info.name for choice in choices if mix != "profile" and _is_solved(choice, geometry, options, mix)
    )
    return TypesWanted(profile, choices, solved)


def check_budget(wanted: TypesWanted, budget_bytes: int) -> None:
    """Raises UsageError if even the smallest types need more than `budget_bytes` for all tensors.

    It needs no costs, so that nothing is measured in vain.
    """
    smallest = sum(_fewest_bytes(choice.info, choice.info.name in wanted.solved) for choice in wanted.choices)
    if smallest > budget_bytes:
        raise UsageError(
            f"{format_size(budget_bytes)} for the tensors: with the smallest types they need {format_size(smallest)}",
            hint="allow more bytes, or free head and embedding: --mix free",
        )


def _fewest_bytes(info: TensorInfo, is_solved: bool) -> int:
    types = mixed_types(info.n_columns) if is_solved else ()
    fitting = [t for t in types if info.n_columns % block_size(t) == 0]
    return min([info.n_bytes, *(TensorInfo(info.name, info.shape, t).n_bytes for t in fitting)])


def _is_solved(choice: TypeChoice, geometry: Geometry, options: TypeOptions, mix: MixKind) -> bool:
    info = choice.info
    if mix == "profile" or kept_reason(info) or any(pattern.search(info.name) for pattern, _ in options.tensor_types):
        return False
    if info.name in (EMBEDDING, OUTPUT):
        given = options.token_embedding_type if info.name == EMBEDDING else options.output_type
        return mix == "free" and given is None
    block = block_number(info.name)
    is_trunk = block is not None and block < geometry.n_trunk  # drafts are not judged by the trunk's divergence
    return is_trunk and info.ggml_type not in FLOAT_TYPES


def solve_types(wanted: TypesWanted, costs: Costs, budget_bytes: int) -> SolvedTypes:
    """Solves the types of a file within `budget_bytes` for all its tensors.

    Args:
        costs: the cost of each type for each matrix in plain importance encoding; empty if none were measured, and
            then nothing may be there to solve.

    Raises:
        UsageError: the smallest types need more bytes.
    """
    infos = {choice.info.name: choice.info for choice in wanted.choices}
    options: dict[str, tuple[Option, ...]] = {}
    for name in infos:
        if name in wanted.solved:
            own = infos[name]  # whose type is mixed, too, so that the file is no worse
            mixed = tuple(dict.fromkeys((*mixed_types(own.n_columns), own.ggml_type)))
            found = options_of(infos[name], after_encoding(name, costs.get(name, {})), mixed)
            options[name] = found or (Option(infos[name].ggml_type, infos[name].n_bytes, 0.0),)
    fixed = sum(info.n_bytes for name, info in infos.items() if name not in options)
    if fixed > budget_bytes:
        raise UsageError(
            f"{format_size(budget_bytes)}: what keeps its type alone needs {format_size(fixed)}",
            hint="allow more bytes, or --mix free",
        )
    mix = solve_mix(options, budget_bytes - fixed)
    types = {name: mix.types.get(name, info.ggml_type) for name, info in infos.items() if not kept_reason(info)}
    profile_types = {name: infos[name].ggml_type for name in types}
    before = _total(profile_types, costs)
    return SolvedTypes(mix, types, before, _total(types, {n: after_encoding(n, by) for n, by in costs.items()}))


def after_encoding(name: str, costs: Mapping[GgmlType, float]) -> dict[GgmlType, float]:
    """The costs of a matrix as it will be encoded: the embedding plainly, all others with feedback."""
    return dict(costs) if name == EMBEDDING else with_feedback(name, costs)


def _total(types: Mapping[str, GgmlType], costs: Costs) -> float | None:
    if not costs:
        return None
    return sum(costs[name].get(ggml_type, 0.0) for name, ggml_type in types.items() if name in costs)
