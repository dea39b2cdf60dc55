"""What a MiMo file may hold under each metadata key: the type that llama.cpp demands, and the sensible values.

llama.cpp reads these keys when it loads a model of either layout. If some of them hold other values, it aborts, hangs
or allocates without end. Keys that it does not read for these layouts are harmless and have no rule.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-model.cpp#L1298-L1480 (load_hparams),
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/step35.cpp#L3-L36
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gguf import GGUFValueType as Kind

from mimo_gguf.core.geometry import MOST_BLOCKS, QWEN2, STEP35
from mimo_gguf.core.kv_cache import MOST_CONTEXT
from mimo_gguf.core.model_source import Metadata, MetaValue

_MOST_WIDTH: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class KeyRule:
    """What one key may hold.

    Attributes:
        kind: the type as stored; None for any.
        wants: the values that are right, in words.
        allows: whether a value of that type is one of them.
        required: the file must have the key.
    """

    kind: Kind | None
    wants: str
    allows: Callable[[Any], bool]
    required: bool = False

    def allows_entry(self, entry: MetaValue) -> bool:
        return (self.kind is None or entry.value_type is self.kind) and self.allows(entry.value)


def _count(least: int, most: int, *, required: bool = False) -> KeyRule:
    return KeyRule(Kind.UINT32, f"a whole number from {least} to {most}", lambda n: least <= n <= most, required)


def _real(least: float, most: float, *, required: bool = False) -> KeyRule:
    wants = f"a float32 from {least:g} to {most:g}"
    return KeyRule(Kind.FLOAT32, wants, lambda x: math.isfinite(x) and least <= x <= most, required)


def _only(*values: object) -> KeyRule:
    """The rule for a key of other models: absent, or one of `values`, which change nothing."""
    wants = f"absent or {' or '.join(map(repr, values))}" if values else "absent"
    return KeyRule(None, wants, lambda value: any(value == known and type(value) is type(known) for known in values))


def _flags(value: Any) -> bool:
    return all(isinstance(item, bool) for item in value) and any(value)


# Under "<layout>.", for both layouts.
_BOTH: Final[Mapping[str, KeyRule]] = {
    "block_count": _count(1, MOST_BLOCKS, required=True),
    "context_length": _count(1, MOST_CONTEXT, required=True),
    "embedding_length": _count(1, _MOST_WIDTH, required=True),
    "feed_forward_length": _count(1, _MOST_WIDTH, required=True),
    "attention.head_count": _count(1, 1 << 16, required=True),
    "attention.head_count_kv": _count(1, 1 << 16),
    "attention.key_length": _count(1, 1 << 16),
    "attention.value_length": _count(1, 1 << 16),
    "attention.key_length_swa": _count(1, 1 << 16),
    "attention.value_length_swa": _count(1, 1 << 16),
    "attention.layer_norm_rms_epsilon": _real(1e-38, 1.0, required=True),
    "attention.causal": _only(True),
    "rope.freq_base": _real(1.0, 1e15),
    "rope.dimension_count": _count(1, 1 << 17),
    "rope.scaling.type": _only("none", "linear", "yarn"),
    "rope.scaling.factor": _real(1e-6, 1e6),
    "rope.scale_linear": _real(1e-6, 1e6),
    "rope.scaling.attn_factor": _real(1e-6, 1e6),
    "rope.scaling.alpha": _real(0.0, 1e6),
    "rope.scaling.original_context_length": _count(1, MOST_CONTEXT),
    "rope.scaling.finetuned": KeyRule(Kind.BOOL, "true or false", lambda _: True),
    "vocab_size": _count(1, 1 << 24),
    "expert_count": _only(0),
    "expert_used_count": _only(0),
    "expert_group_count": _only(0),
    "expert_group_used_count": _only(0),
    "embedding_length_out": _only(),
    "pooling_type": _only(0),
    "classifier.pooling_type": _only(0),
    "classifier.output_labels": _only(),
}
_BY_LAYOUT: Final[Mapping[str, Mapping[str, KeyRule]]] = {
    QWEN2: {**_BOTH, "nextn_predict_layers": _only(0)},
    STEP35: {
        **_BOTH,
        "nextn_predict_layers": _count(0, MOST_BLOCKS - 1),
        "rope.dimension_count_swa": _count(1, 1 << 16),
        "rope.freq_base_swa": _real(1.0, 1e15),
        "attention.sliding_window": _count(1, (1 << 31) - 1, required=True),
        "attention.sliding_window_pattern": KeyRule(
            Kind.ARRAY, "true or false for each block, true for the MTP blocks", _flags, required=True
        ),
        "expert_feed_forward_length": _count(1, _MOST_WIDTH, required=True),
        "expert_shared_feed_forward_length": _only(0),
        "expert_gating_func": _only(0),
        "expert_weights_scale": _only(),
        "expert_weights_norm": _only(),
        "swiglu_clamp_exp": _only(0.0),
        "swiglu_clamp_shexp": _only(0.0),
    },
}
# Beside the layout's own; wrong types make llama.cpp refuse a file with a message of its own.
_GENERAL: Final[Mapping[str, KeyRule]] = {
    "general.architecture": KeyRule(Kind.STRING, " or ".join(_BY_LAYOUT), lambda text: text in _BY_LAYOUT, True),
    "general.name": KeyRule(Kind.STRING, "a text", lambda _: True),
    "general.file_type": KeyRule(Kind.UINT32, "a whole number", lambda _: True),
    "general.tensor_extra.name": _only(),
    "general.tensor_extra.prec_a4": _only(),
}


def key_rules(layout: str) -> Iterator[tuple[str, KeyRule]]:
    """Every full key that has a rule in files of `layout`, with that rule."""
    yield from _GENERAL.items()
    for key, rule in _BY_LAYOUT[layout].items():
        yield f"{layout}.{key}", rule


def key_fault(metadata: Metadata, key: str, rule: KeyRule) -> str | None:
    """What is wrong with the key, in words; None if nothing is."""
    entry = metadata.get(key)
    if entry is None:
        return f"metadata key {key} is missing" if rule.required else None
    if rule.allows_entry(entry):
        return None
    return f"metadata key {key} is {_shown(entry)}, not {rule.wants}"


def _shown(entry: MetaValue) -> str:
    if entry.value_type is not Kind.ARRAY:
        return f"{str(entry.value)[:60]!r} ({entry.value_type.name.lower()})"
    item = entry.item_type.name.lower() if entry.item_type is not None else "nothing"
    return f"an array of {len(entry.value)} x {item}"
