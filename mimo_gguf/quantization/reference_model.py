"""The model that profiles are described by: sizes and types of MiMo-7B without any file of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from mimo_gguf.core.geometry import STEP35, Geometry, tensor_group
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.core.shelves import QUANT_PROFILES, read_toml, shelf
from mimo_gguf.quantization.profiles import Profile
from mimo_gguf.quantization.type_choice import Importance, TypeChoice, choose_types, kept_reason

_FILE: Final = "models/mimo-7b.toml"


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """A model's name, geometry and tensors (in BF16, vectors in F32)."""

    name: str
    geometry: Geometry
    tensors: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class ProfileSize:
    """What a profile makes of the reference model.

    Attributes:
        needs_imatrix: whether it cannot be written without an importance matrix.
        types: (type name, how many matrices), most first.
        mtp_types: the types of the MTP block's matrices.
    """

    n_bytes: int
    bits_per_weight: float
    needs_imatrix: bool
    types: tuple[tuple[str, int], ...]
    mtp_types: tuple[str, ...]
    choices: tuple[TypeChoice, ...]


def load_reference_model() -> ReferenceModel:
    """MiMo-7B from the data file beside the profiles."""
    table = read_toml(shelf(QUANT_PROFILES) / _FILE)
    tensors = tuple(_tensors(table))
    shapes = {info.name: info.shape for info in tensors}
    n_blocks = int(table["n_trunk"]) + int(table["n_mtp"])
    vocab_size, width = shapes["token_embd.weight"]
    head_dim = shapes["blk.0.attn_q.weight"][0] // int(table["head_count"])
    geometry = Geometry(
        architecture=STEP35,
        block_count=n_blocks,
        n_mtp=int(table["n_mtp"]),
        context_length=0,
        embedding_length=width,
        feed_forward_length=shapes["blk.0.ffn_up.weight"][0],
        head_count=int(table["head_count"]),
        head_count_kv=int(table["head_count_kv"]),
        key_length=head_dim,
        value_length=head_dim,
        rope_freq_base=0.0,
        rms_epsilon=0.0,
        vocab_size=vocab_size,
    )
    return ReferenceModel(str(table["name"]), geometry, tensors)


def _tensors(table: dict[str, Any]) -> Iterator[TensorInfo]:
    n_trunk, n_mtp = int(table["n_trunk"]), int(table["n_mtp"])
    named = dict(table["outside"])
    for i in range(n_trunk + n_mtp):
        members = table["block"] | (table["mtp"] if i >= n_trunk else {})
        named |= {f"blk.{i}.{name}": shape for name, shape in members.items()}
    for name, shape in named.items():
        yield TensorInfo(name, tuple(shape), GgmlType.BF16 if len(shape) > 1 else GgmlType.F32)


def idle_globs(profile: Profile, model: ReferenceModel) -> tuple[str, ...]:
    """A line for each glob of a rule that names no matrix of `model`: misspelled, as a rule."""
    matrices = [info.name for info in model.tensors if kept_reason(info) is None]
    return tuple(
        f"rule {number}: {glob} names no matrix of {model.name}"
        for number, rule in enumerate(profile.rules, 1)
        for glob in rule.tensors
        if not any(fnmatchcase(name, glob) for name in matrices)
    )


def size_of(profile: Profile, model: ReferenceModel) -> ProfileSize:
    """What `profile` makes of `model`.

    Without an importance matrix where that is possible, else with one that covers the trunk, as llama-imatrix makes it.
    """
    n_trunk = model.geometry.n_trunk
    alone = choose_types(profile, model.geometry, model.tensors)
    needed = any(choice.lacks_importance for choice in alone)
    covered = {info.name for info in model.tensors if tensor_group(info.name, n_trunk) == "trunk"}
    choices = (
        choose_types(profile, model.geometry, model.tensors, importance=Importance(True, covered)) if needed else alone
    )
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
