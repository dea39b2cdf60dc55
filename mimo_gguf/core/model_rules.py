"""Rules that metadata and tensors must keep so that llama.cpp can run the model.

They are checked before a GGUF is loaded, and before a conversion writes one, from headers alone. A file that breaks one
makes llama.cpp at commit 0c1e57098 abort, hang, allocate absurd memory or compute a wrong result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.geometry import LAYOUTS, QWEN2, STEP35, Geometry, read_geometry
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.key_rules import key_fault, key_rules
from mimo_gguf.core.model_source import Metadata, TensorInfo

# ggml cannot multiply by these: integers, doubles, and intermediate formats of activations.
_NOT_WEIGHTS: Final = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
MATRIX_TYPES: Final = frozenset(kind for kind in GgmlType if kind.name not in _NOT_WEIGHTS)


@dataclass(frozen=True, slots=True)
class Stated:
    """Numbers that a file states beyond its geometry, with llama.cpp's defaults for those it leaves out.

    Attributes:
        rope_full, rope_swa: rotary dimensions in blocks of full attention, and in sliding-window blocks.
        key_swa, value_swa: head sizes in sliding-window blocks.
        n_flags: length of the sliding-window pattern.
        vocab_key: `vocab_size` as a metadata key.
    """

    geometry: Geometry
    rope_full: float
    rope_swa: int
    key_swa: int
    value_swa: int
    window: int
    n_flags: int
    vocab_key: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A relation between a model's numbers that must hold.

    Attributes:
        holds: whether it does.
        says: the fault in words, if it does not.
        layouts: the layouts it applies to.
    """

    holds: Callable[[Stated, Geometry], bool]
    says: Callable[[Stated, Geometry], str]
    layouts: tuple[str, ...] = LAYOUTS


# https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/qwen2.cpp (asserts and tensor shapes)
# https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/step35.cpp
RULES: Final[tuple[Rule, ...]] = (
    Rule(
        lambda s, g: g.head_count % g.head_count_kv == 0,
        lambda s, g: f"{g.head_count} attention heads cannot share {g.head_count_kv} KV heads evenly",
    ),
    Rule(
        lambda s, g: _can_rotate(s.rope_full, g.key_length),
        lambda s, g: f"rotary dimensions {s.rope_full:g} are not even, or beyond heads of {g.key_length}",
    ),
    Rule(
        lambda s, g: _can_rotate(s.rope_swa, g.key_length),
        lambda s, g: f"rotary dimensions {s.rope_swa} of MTP blocks are not even, or beyond heads of {g.key_length}",
        (STEP35,),
    ),
    Rule(
        lambda s, g: g.head_count * g.key_length == g.embedding_length,
        lambda s, g: (
            f"the qwen2 layout cannot hold {g.head_count} heads of {g.key_length} beside a hidden size of "
            f"{g.embedding_length}: llama.cpp wants their product to be that"
        ),
        (QWEN2,),
    ),
    Rule(
        lambda s, g: g.key_length == g.value_length == s.rope_full,
        lambda s, g: (
            f"the qwen2 layout wants key_length {g.key_length}, value_length {g.value_length} and rotary dimensions "
            f"{s.rope_full:g} to be the same"
        ),
        (QWEN2,),
    ),
    Rule(
        lambda s, g: (s.key_swa, s.value_swa) == (g.key_length, g.value_length),
        lambda s, g: f"heads of {s.key_swa} and {s.value_swa} in sliding-window blocks, of {g.key_length} elsewhere",
    ),
    Rule(
        lambda s, g: s.n_flags == g.block_count,
        lambda s, g: f"sliding_window_pattern has {s.n_flags} entries for {g.block_count} blocks",
        (STEP35,),
    ),
    Rule(
        lambda s, g: s.window >= g.context_length,
        lambda s, g: f"a sliding window of {s.window} tokens would mask part of a context of {g.context_length}",
        (STEP35,),
    ),
    Rule(
        lambda s, g: s.vocab_key == g.vocab_size,
        lambda s, g: f"vocab_size is {s.vocab_key}, the embedding has {g.vocab_size} rows",
    ),
)


def model_fault(metadata: Metadata, tensors: Sequence[TensorInfo], *, where: str = "") -> str | None:
    """The first reason why llama.cpp cannot run such a model, in words; None if there is none.

    Raises:
        GgufError: the architecture is not one of `LAYOUTS`; `where` names the file in the message.
    """
    architecture = str(metadata["general.architecture"].value) if "general.architecture" in metadata else ""
    rules = key_rules(architecture) if architecture in LAYOUTS else ()
    for key, rule in rules:
        if (fault := key_fault(metadata, key, rule)) is not None:
            return fault
    try:
        geometry = read_geometry(metadata, tensors, where=where)
    except GgufError as error:
        if architecture not in LAYOUTS:
            raise
        return error.message.removeprefix(f"{where}: ")
    stated = _stated(metadata, geometry)
    for relation in RULES:
        if architecture in relation.layouts and not relation.holds(stated, geometry):
            return relation.says(stated, geometry)
    return next(_tensor_faults(geometry, tensors), None)


def _can_rotate(dimensions: float, head: int) -> bool:
    return 2 <= dimensions <= head and dimensions % 2 == 0


def _stated(metadata: Metadata, g: Geometry) -> Stated:
    def value(key: str, default: Any) -> Any:
        entry = metadata.get(f"{g.architecture}.{key}")
        return default if entry is None else entry.value

    dimensions = value("rope.dimension_count", g.key_length)
    return Stated(
        geometry=g,
        rope_full=dimensions / 2 if g.architecture == STEP35 else dimensions,  # step35's loader halves it
        rope_swa=value("rope.dimension_count_swa", dimensions),
        key_swa=value("attention.key_length_swa", g.key_length),
        value_swa=value("attention.value_length_swa", g.value_length),
        window=value("attention.sliding_window", 0),
        n_flags=len(value("attention.sliding_window_pattern", ())),
        vocab_key=value("vocab_size", g.vocab_size),
    )


@dataclass(frozen=True, slots=True)
class _Expected:
    shape: tuple[int, ...]
    required: bool = True


def _tensor_faults(g: Geometry, tensors: Sequence[TensorInfo]) -> Iterator[str]:
    """The differences between the tensors and those that the geometry calls for, in words."""
    expected = dict(_expected_tensors(g))
    for info in tensors:
        wanted = expected.get(info.name)
        if wanted is None:
            yield f"tensor {info.name[:80]!r} has no place in a {g.architecture} file of {g.block_count} blocks"
        elif info.shape != wanted.shape:
            yield f"tensor {info.name} has shape {list(info.shape)}, the metadata says {list(wanted.shape)}"
        elif len(info.shape) == 1 and info.ggml_type is not GgmlType.F32:
            yield f"tensor {info.name} is a vector of type {info.ggml_type.name}, which llama.cpp wants in F32"
        elif info.ggml_type not in MATRIX_TYPES:
            yield f"tensor {info.name} is of type {info.ggml_type.name}, with which llama.cpp cannot compute"
    present = {info.name for info in tensors}
    for name, wanted in expected.items():
        if wanted.required and name not in present:
            yield f"tensor {name} is missing"


def _expected_tensors(g: Geometry) -> Iterator[tuple[str, _Expected]]:
    """Every tensor that the file may hold, by name; shapes are row-major."""
    width = g.embedding_length
    yield "token_embd.weight", _Expected((g.vocab_size, width))
    yield "output_norm.weight", _Expected((width,))
    yield "output.weight", _Expected((g.vocab_size, width), required=g.architecture == STEP35)
    block, mtp = _block_tensors(g), _mtp_tensors(g)
    for number in range(g.block_count):
        members = block if number < g.n_trunk else {**block, **mtp}
        for name, expected in members.items():
            yield f"blk.{number}.{name}", expected


def _block_tensors(g: Geometry) -> Mapping[str, _Expected]:
    width, inner = g.embedding_length, g.feed_forward_length
    q, k, v = g.head_count * g.key_length, g.head_count_kv * g.key_length, g.head_count_kv * g.value_length
    return {
        "attn_norm.weight": _Expected((width,)),
        "attn_q.weight": _Expected((q, width)),
        "attn_k.weight": _Expected((k, width)),
        "attn_v.weight": _Expected((v, width)),
        "attn_q.bias": _Expected((q,), required=False),
        "attn_k.bias": _Expected((k,), required=False),
        "attn_v.bias": _Expected((v,), required=False),
        "attn_output.weight": _Expected((width, g.head_count * g.value_length)),
        "ffn_norm.weight": _Expected((width,)),
        "ffn_gate.weight": _Expected((inner, width)),
        "ffn_up.weight": _Expected((inner, width)),
        "ffn_down.weight": _Expected((width, inner)),
    }


def _mtp_tensors(g: Geometry) -> Mapping[str, _Expected]:
    width = g.embedding_length
    return {
        "nextn.eh_proj.weight": _Expected((width, 2 * width)),
        "nextn.enorm.weight": _Expected((width,)),
        "nextn.hnorm.weight": _Expected((width,)),
        "nextn.shared_head_norm.weight": _Expected((width,)),
        "nextn.shared_head_head.weight": _Expected((g.vocab_size, width), required=False),
    }
