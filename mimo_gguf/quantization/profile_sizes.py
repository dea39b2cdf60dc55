"""Computes what a profile makes of a model, sizes and types, from the model's tensor table alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mimo_gguf.core.geometry import tensor_group
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.quantization.profiles import Profile
from mimo_gguf.quantization.type_choice import ImportanceGiven, TypeChoice, choose_types, kept_reason


@dataclass(frozen=True, slots=True)
class ProfileSize:
    """The sizes and types that a profile makes of a model.

    Attributes:
        needs_imatrix: whether it cannot be written without an importance matrix.
        types: (type name, number of matrices), the most frequent type first.
        mtp_types: the types of the MTP block's matrices, the most frequent first.
        choices: one per tensor, in the model's order.
    """

    n_bytes: int
    bits_per_weight: float
    needs_imatrix: bool
    types: tuple[tuple[str, int], ...]
    mtp_types: tuple[str, ...]
    choices: tuple[TypeChoice, ...]


def idle_globs(profile: Profile, model: ModelSizes) -> tuple[str, ...]:
    """Describes in a line each glob of a rule that matches no matrix of `model`: it is probably misspelled."""
    matrices = [info.name for info in model.tensors if kept_reason(info) is None]
    return tuple(
        f"rule {number}: {glob} names no matrix of {model.label}"
        for number, rule in enumerate(profile.rules, 1)
        for glob in rule.tensors
        if not any(fnmatchcase(name, glob) for name in matrices)
    )


def size_of(profile: Profile, model: ModelSizes) -> ProfileSize:
    """Computes what `profile` makes of `model`.

    It assumes no importance matrix if that is possible, and otherwise one for the trunk, as llama-imatrix makes it.
    """
    n_trunk = model.geometry.n_trunk
    alone = choose_types(profile, model.geometry, model.tensors)
    needed = any(choice.lacks_importance for choice in alone)
    covered = {info.name for info in model.tensors if tensor_group(info.name, n_trunk) == "trunk"}
    given = ImportanceGiven(True, covered)
    choices = choose_types(profile, model.geometry, model.tensors, importance=given) if needed else alone
    matrices = [choice.info for choice in choices if len(choice.info.shape) > 1]
    mtp = Counter(info.ggml_type.name for info in matrices if tensor_group(info.name, n_trunk) == "mtp")
    n_bytes = sum(choice.info.n_bytes for choice in choices)
    n_weights = sum(choice.info.n_elements for choice in choices)
    return ProfileSize(
        n_bytes=n_bytes,
        bits_per_weight=8 * n_bytes / n_weights,
        needs_imatrix=needed,
        types=tuple(Counter(info.ggml_type.name for info in matrices).most_common()),
        mtp_types=tuple(name for name, _ in mtp.most_common()),
        choices=choices,
    )
