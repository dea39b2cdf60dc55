"""Mutations of a GGUF that know its fields: each changes what a valid file says, and keeps the file well-formed.

A mutation is a function of (parts, random numbers) that changes the parts in place and says what it did.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from gguf import GGUFValueType as Kind

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.model_source import MetaValue
from tests.fuzz.gguf_bytes import GgufParts, Tensor
from tests.quantization import models

RANGES: Final = {
    Kind.UINT8: (0, 255), Kind.INT8: (-128, 127), Kind.UINT16: (0, 65535), Kind.INT16: (-32768, 32767),
    Kind.UINT32: (0, (1 << 32) - 1), Kind.INT32: (-(1 << 31), (1 << 31) - 1),
    Kind.UINT64: (0, (1 << 64) - 1), Kind.INT64: (-(1 << 63), (1 << 63) - 1), Kind.BOOL: (0, 1),
}  # fmt: skip
FLOATS: Final = (Kind.FLOAT32, Kind.FLOAT64)
NUMBERS: Final = (
    0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 100, 255, 256, 511, 512, 513, 65535, 65536, 1 << 20, (1 << 24) + 1,
    (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -2, -(1 << 31),
)  # fmt: skip
REALS: Final = (
    0.0, -0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e-45, 1e-38, 1e-30, 1e-5, 1e30, 3.4e38, 2.0**31, 1.5,
)  # fmt: skip
TEXTS: Final = (
    "", "\0", "gpt2", "gpt2\0", "llama", "bert", "t5", "rwkv", "none", "no_vocab", "test", "plamo2", "gemma4",
    "hybriddna", "whitespace", "qwen2", "step35", "kimi-k2", "default", "gpt-2", "deepseek-v3", "gemma4", "chatglm-bpe",
    "llama-bpe", "jina-v2-code", "superbpe", "yarn", "linear", "longrope", "phi-3", "modern-bert", "model", "adapter",
    "ü" * 300, "\u202e", "a" * 100_000, "{{ messages[0].content }}", "{% for x in %}", "{{ 1/0 }}",
)  # fmt: skip
# Keys that llama.cpp reads somewhere, of any architecture, and that a MiMo file does not have.
FOREIGN_KEYS: Final = (
    "{a}.expert_count", "{a}.expert_used_count", "{a}.expert_group_count", "{a}.expert_group_used_count",
    "{a}.expert_gating_func", "{a}.expert_weights_scale", "{a}.expert_weights_norm", "{a}.expert_feed_forward_length",
    "{a}.expert_shared_feed_forward_length", "{a}.expert_shared_count", "{a}.embedding_length_out", "{a}.pooling_type",
    "{a}.classifier.pooling_type", "{a}.attention.causal", "{a}.attention.key_length_swa", "{a}.swiglu_clamp_exp",
    "{a}.attention.value_length_swa", "{a}.swiglu_clamp_shexp", "{a}.rope.scaling.type", "{a}.rope.scaling.factor",
    "{a}.rope.scaling.original_context_length", "{a}.rope.scaling.attn_factor", "{a}.rope.scaling.finetuned",
    "{a}.rope.scaling.alpha", "{a}.rope.scale_linear", "{a}.rope.dimension_count", "{a}.rope.dimension_count_swa",
    "{a}.rope.freq_base_swa", "{a}.vocab_size", "{a}.nextn_predict_layers", "{a}.attention.sliding_window",
    "{a}.attention.sliding_window_pattern", "{a}.classifier.output_labels", "{a}.attention.scale", "{a}.logit_scale",
    "{a}.rope.dimension_sections", "{a}.n_deepstack_layers", "{a}.attention.clamp_kqv", "{a}.attention.max_alibi_bias",
    "{a}.rope.scaling.yarn_ext_factor", "{a}.final_logit_softcapping", "{a}.embedding_scale", "{a}.residual_scale",
    "{a}.attention.recurrent_layers", "{a}.attention.shared_kv_layers", "{a}.target_layers", "general.alignment",
    "general.alignment\0", "tokenizer.ggml.model\0", "{a}.block_count\0", "split.count", "split.no",
    "split.tensors.count", "general.file_type", "general.name", "general.type", "general.tensor_extra.name",
    "general.tensor_extra.prec_a4", "general.quantization_version", "tokenizer.ggml.scores",
    "tokenizer.ggml.token_type_count", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.seperator_token_id", "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.prefix_token_id", "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_sep_token", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.suppress_tokens",
    "tokenizer.ggml.normalizer.lowercase", "tokenizer.ggml.precompiled_charsmap", "tokenizer.chat_template",
    "tokenizer.chat_templates", "tokenizer.chat_template.rag", "tokenizer.ggml.remove_extra_whitespaces",
)  # fmt: skip
FOREIGN_TENSORS: Final = (
    "blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight", "blk.0.rope_freqs.weight", "rope_freqs.weight",
    "blk.0.attn_gate.weight", "blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_exps.weight", "blk.0.attn_qkv.weight",
    "blk.0.attn_output.bias", "output.bias", "output_norm.bias", "blk.0.ffn_up.bias", "token_embd_norm.weight",
    "blk.4294967296.attn_q.weight", "blk.-1.attn_q.weight", "blk.1e9.attn_q.weight", "blk.\u0663.attn_q.weight",
    "blk.99.attn_q.weight", "blk.2.nextn.embed_tokens.weight", "blk.2.nextn.shared_head_head.weight", "cls.weight",
    "blk.0.attn_q.scale", "blk.0.attn_q.weight\0", "v.patch_embd.weight", "blk.0..weight", "blk..", "\0",
)  # fmt: skip
GGML_TYPES: Final = (*range(4), *range(6, 32), 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 250)
Mutation = Callable[[GgufParts, random.Random], str]


def hostile_number(rng: random.Random, value: Any, kind: Kind) -> MetaValue:
    """Another number instead of `value`, of the same type if that holds it."""
    if kind in FLOATS and rng.random() < 0.8:
        return MetaValue(kind, float(np.float32(rng.choice(REALS))))
    near = (value - 1, value + 1, 2 * value, value // 2) if isinstance(value, int) else ()
    number = rng.choice((*NUMBERS, *near, *near))
    if kind in RANGES and RANGES[kind][0] <= number <= RANGES[kind][1]:
        return MetaValue(kind, bool(number) if kind is Kind.BOOL else number)
    fitting = [other for other, (low, high) in RANGES.items() if low <= number <= high and other is not Kind.BOOL]
    other = rng.choice(fitting)
    return MetaValue(other, number)


def any_value(rng: random.Random) -> MetaValue:
    kind = rng.choice((Kind.UINT32, Kind.UINT32, Kind.FLOAT32, Kind.BOOL, Kind.STRING, Kind.ARRAY, Kind.UINT64))
    if kind is Kind.STRING:
        return MetaValue(kind, rng.choice(TEXTS))
    if kind is not Kind.ARRAY:
        return hostile_number(rng, 1, kind)
    item = rng.choice((Kind.STRING, Kind.INT32, Kind.UINT32, Kind.FLOAT32, Kind.BOOL, Kind.UINT8))
    return MetaValue(kind, [item_of(rng, item) for _ in range(rng.choice((0, 1, 2, 3, 272, 600)))], item)


def item_of(rng: random.Random, kind: Kind) -> Any:
    if kind is Kind.STRING:
        return rng.choice(TEXTS[:30])
    if kind in FLOATS:
        return rng.choice(REALS)
    low, high = RANGES[kind]
    return rng.choice([number for number in NUMBERS if low <= number <= high])


def _pick_key(parts: GgufParts, rng: random.Random, *kinds: Kind) -> str:
    keys = [key for key, entry in parts.metadata.items() if not kinds or entry.value_type in kinds]
    own = [key for key in keys if key.startswith(f"{parts.architecture}.")]
    return rng.choice(own if own and rng.random() < 0.8 else keys)


def change_number(parts: GgufParts, rng: random.Random) -> str:
    key = _pick_key(parts, rng, *RANGES, *FLOATS)
    old = parts.metadata[key]
    parts.metadata[key] = new = hostile_number(rng, old.value, old.value_type)
    if key == "general.alignment" and isinstance(new.value, int) and 0 < new.value <= 4096:
        parts.alignment = new.value
    return f"{key} = {new.value} ({new.value_type.name})"


def change_type(parts: GgufParts, rng: random.Random) -> str:
    key = _pick_key(parts, rng)
    old = parts.metadata[key]
    if rng.random() < 0.3 or old.value_type is Kind.ARRAY:
        new = any_value(rng)
    elif old.value_type is Kind.STRING or rng.random() < 0.2:
        item = old.value_type
        new = MetaValue(Kind.ARRAY, [old.value] * rng.choice((1, 2, 3)), item)
    else:
        kind = rng.choice((*RANGES, *FLOATS, Kind.STRING))
        low, high = RANGES.get(kind, (-math.inf, math.inf))
        if kind is Kind.STRING:
            new = MetaValue(kind, str(old.value))
        elif kind in FLOATS:
            new = MetaValue(kind, float(old.value))
        else:
            number = int(old.value) if low <= old.value <= high else 1
            new = MetaValue(kind, bool(number) if kind is Kind.BOOL else number)
    parts.metadata[key] = new
    return f"{key} as {new.value_type.name}"


def drop_key(parts: GgufParts, rng: random.Random) -> str:
    key = _pick_key(parts, rng)
    if key == "general.architecture" and rng.random() < 0.9:
        return change_number(parts, rng)
    del parts.metadata[key]
    return f"without {key}"


def add_key(parts: GgufParts, rng: random.Random) -> str:
    key = rng.choice(FOREIGN_KEYS).format(a=parts.architecture)
    value = any_value(rng)
    parts.metadata = {key: value, **parts.metadata} if rng.random() < 0.5 else {**parts.metadata, key: value}
    if key.startswith("general.alignment") and isinstance(value.value, int) and 0 < value.value <= 4096:
        parts.alignment = value.value
    return f"{key!r} added: {value.value_type.name} {str(value.value)[:40]}"


def set_alignment(parts: GgufParts, rng: random.Random) -> str:
    parts.alignment = rng.choice((1, 2, 4, 8, 16, 24, 33, 64, 4096))
    parts.metadata["general.alignment"] = MetaValue(Kind.UINT32, parts.alignment)
    return f"alignment {parts.alignment}"


def change_array(parts: GgufParts, rng: random.Random) -> str:
    key = _pick_key(parts, rng, Kind.ARRAY) if any(e.value_type is Kind.ARRAY for e in parts.metadata.values()) else ""
    if not key:
        return add_key(parts, rng)
    entry = parts.metadata[key]
    values, item = list(entry.value), entry.item_type
    assert item is not None
    how = rng.choice(("none", "one", "shorter", "longer", "twice", "same", "item", "reverse", "600"))
    if how == "same":
        values = [values[0] if values else item_of(rng, item)] * len(values)
    elif how == "item" and values:
        values[rng.randrange(len(values))] = item_of(rng, item)
    else:
        changes: dict[str, list[Any]] = {
            "none": [], "one": values[:1], "shorter": values[:-1], "longer": [*values, item_of(rng, item)],
            "twice": values + values, "reverse": values[::-1], "600": (values * 600)[:600],
        }  # fmt: skip
        values = changes.get(how, values)
    parts.metadata[key] = MetaValue(Kind.ARRAY, values, item)
    return f"{key}: {how}, {len(values)} items"


def change_text(parts: GgufParts, rng: random.Random) -> str:
    keys = [key for key, entry in parts.metadata.items() if entry.value_type is Kind.STRING]
    key = rng.choice(keys)
    if key == "general.architecture" and rng.random() < 0.7:
        key = "tokenizer.ggml.model" if rng.random() < 0.5 else "tokenizer.ggml.pre"
    text = rng.choice(TEXTS)
    parts.metadata[key] = MetaValue(Kind.STRING, text)
    return f"{key} = {text[:30]!r}"


def _items(parts: GgufParts, key: str, item: Kind) -> list[Any]:
    """A copy of an array's items; none if it is no longer there or of another type."""
    entry = parts.metadata.get(key)
    return list(entry.value) if entry is not None and entry.item_type is item else []


def change_tokens(parts: GgufParts, rng: random.Random) -> str:
    key = "tokenizer.ggml.tokens"
    tokens = _items(parts, key, Kind.STRING)
    if len(tokens) < 2:
        return change_array(parts, rng)
    at, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
    how = rng.choice(("twice", "empty", "nul", "long", "short", "more", "swap", "control", "empty twice", "space"))
    if how == "short":
        tokens.pop()
    elif how == "more":
        tokens.append("one more")
    elif how == "swap":
        tokens[at], tokens[other] = tokens[other], tokens[at]
    elif how == "empty twice":
        tokens[0], tokens[1] = "", "[EMPTY_0]"
    else:
        tokens[at] = {
            "twice": tokens[other], "empty": "", "nul": tokens[other] + "\0x", "long": "x" * 200_000,
            "control": "\x1b]0;title\x07", "space": " ",
        }[how]  # fmt: skip
    parts.metadata[key] = MetaValue(Kind.ARRAY, tokens, Kind.STRING)
    return f"tokens: {how}"


def change_token_types(parts: GgufParts, rng: random.Random) -> str:
    key = "tokenizer.ggml.token_type"
    kinds = _items(parts, key, Kind.INT32)
    if not kinds:
        return change_array(parts, rng)
    number = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, -1, 1 << 30))
    if rng.random() < 0.5:
        kinds = [number] * len(kinds)
    else:
        kinds[rng.randrange(len(kinds))] = number
    item = rng.choice((Kind.INT32, Kind.INT32, Kind.INT32, Kind.INT64, Kind.FLOAT32))
    parts.metadata[key] = MetaValue(Kind.ARRAY, kinds, item)
    return f"token types: {number} as {item.name}"


def change_merges(parts: GgufParts, rng: random.Random) -> str:
    how = rng.choice(("none", "no space", "empty", "spaces", "unknown", "many", "nul", "ints"))
    changes: dict[str, list[Any]] = {
        "none": [], "no space": ["he"], "empty": [""], "spaces": ["h  e", " h e", "h e "], "unknown": ["zq qz", "h e"],
        "many": ["h e"] * 5000, "nul": ["h\0e", "h \0"], "ints": [1, 2],
    }  # fmt: skip
    item = Kind.INT32 if how == "ints" else Kind.STRING
    parts.metadata["tokenizer.ggml.merges"] = MetaValue(Kind.ARRAY, changes[how], item)
    return f"merges: {how}"


def change_special_id(parts: GgufParts, rng: random.Random) -> str:
    name = rng.choice(("bos", "eos", "eot", "eom", "unknown", "padding", "mask", "seperator", "fim_pad", "fim_rep"))
    value = hostile_number(rng, 1, Kind.UINT32)
    parts.metadata[f"tokenizer.ggml.{name}_token_id"] = value
    return f"{name} token {value.value} ({value.value_type.name})"


def change_tensor(parts: GgufParts, rng: random.Random) -> str:
    if not parts.tensors:
        return add_tensor(parts, rng)
    at = rng.randrange(len(parts.tensors))
    tensor = parts.tensors[at]
    how = rng.choice(("drop", "name", "dims", "type", "type", "offset", "twice", "order"))
    if how == "drop":
        del parts.tensors[at]
    elif how == "name":
        names = [*FOREIGN_TENSORS, rng.choice(parts.tensors).name, tensor.name.upper(), tensor.name + "x"]
        parts.tensors[at] = replace(tensor, name=rng.choice(names))
    elif how == "dims":
        parts.tensors[at] = replace(tensor, dims=_other_dims(tensor.dims, rng)).sized()
    elif how == "type":
        parts.tensors[at] = replace(tensor, ggml_type=rng.choice(GGML_TYPES)).sized()
    elif how == "offset":
        parts.tensors[at] = replace(tensor, moved=rng.choice((32, -32, 1, 1 << 40, -(1 << 40), 1 << 63)))
    elif how == "twice":
        parts.tensors.append(tensor)
    else:
        rng.shuffle(parts.tensors)
    return f"tensor {tensor.name}: {how} {parts.tensors[min(at, len(parts.tensors) - 1)].ggml_type}"


def _other_dims(dims: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    at = rng.randrange(len(dims))
    number = rng.choice((0, 1, dims[at] - 1, dims[at] + 1, 2 * dims[at], dims[at] // 2, 1 << 31, 1 << 62, -1))
    changed = (*dims[:at], number, *dims[at + 1 :])
    return rng.choice((changed, changed, dims[::-1], (*dims, 1), (1, *dims), (math.prod(dims),), (*dims, 2)))


def add_tensor(parts: GgufParts, rng: random.Random) -> str:
    name = rng.choice(FOREIGN_TENSORS)
    like = rng.choice(parts.tensors or [Tensor(name, (4,), 0, bytes(16))])
    parts.tensors.append(replace(like, name=name))
    return f"tensor {name!r} added"


def retype_all(parts: GgufParts, rng: random.Random) -> str:
    """All matrices, or all vectors, in another type."""
    is_matrix = rng.random() < 0.7
    number = rng.choice(GGML_TYPES)
    parts.tensors = [
        replace(tensor, ggml_type=number).sized() if (len(tensor.dims) > 1) is is_matrix else tensor
        for tensor in parts.tensors
    ]
    return f"all {'matrices' if is_matrix else 'vectors'} as type {number}"


def change_weights(parts: GgufParts, rng: random.Random) -> str:
    """Numbers no model has, in one tensor or in all of a kind."""
    fill = rng.choice((b"\xff", b"\x7f", b"\x00", b"\x80", b"\x01", b"\xfe\x7f"))
    chosen = rng.choice(parts.tensors).name if parts.tensors else ""
    suffix = chosen.rsplit(".", 2)[-2:] if rng.random() < 0.5 else None

    def filled(tensor: Tensor) -> Tensor:
        return replace(tensor, data=(fill * len(tensor.data))[: len(tensor.data)])

    parts.tensors = [
        filled(t) if t.name == chosen or (suffix and t.name.rsplit(".", 2)[-2:] == suffix) else t for t in parts.tensors
    ]
    return f"weights of {chosen} all {fill!r}"


def change_geometry(parts: GgufParts, rng: random.Random) -> str:
    """A file whose keys and tensors agree with each other on a geometry, however odd."""
    layout = parts.architecture if parts.architecture in ("step35", "qwen2") else "step35"
    heads = rng.choice((1, 2, 3, 4, 5, 7, 8))
    head_dim = rng.choice((1, 2, 3, 6, 8, 15, 16, 17, 30, 34, 64, 80, 96))
    width = rng.choice((1, 31, 32, 33, 48, 64, heads * head_dim, heads * head_dim))
    model = models.Model(
        layout=layout, n_trunk=rng.choice((1, 1, 2, 3)), n_mtp=rng.choice((0, 1, 1, 2)), width=width,
        ffn=rng.choice((1, 31, 32, 96)), vocab=272, heads=heads, kv_heads=rng.choice((1, 2, 3, heads, heads, 8)),
        head_dim=head_dim, ggml_type=GgmlType.F32,
    )  # fmt: skip
    keys = {key: value for key, value in models.metadata(model).items() if not key.startswith("tokenizer.")}
    kept = {key: value for key, value in parts.metadata.items() if key.startswith("tokenizer.")}
    parts.metadata = {**keys, **kept}
    floats = np.random.default_rng(rng.randrange(1 << 30))
    parts.tensors = [
        Tensor(name, shape[::-1], 0, (floats.standard_normal(shape) * 0.1).astype(np.float32).tobytes())
        for name, shape in models.shapes(model)
    ]
    return f"geometry {model}"


TABLE: Final[tuple[tuple[int, Mutation], ...]] = (
    (30, change_number),
    (10, change_type),
    (8, drop_key),
    (12, add_key),
    (2, set_alignment),
    (6, change_array),
    (4, change_text),
    (6, change_tokens),
    (3, change_token_types),
    (3, change_merges),
    (4, change_special_id),
    (12, change_tensor),
    (3, add_tensor),
    (5, retype_all),
    (4, change_weights),
    (10, change_geometry),
)


def mutant(parts: GgufParts, rng: random.Random) -> tuple[str, GgufParts]:
    """What was done (one mutation, sometimes two or three), and the changed parts."""
    changed = parts.copy()
    weights, mutations = zip(*TABLE, strict=True)
    chosen = rng.choices(mutations, weights, k=rng.choice((1, 1, 1, 1, 2, 3)))
    return "; ".join(mutation(changed, rng) for mutation in chosen), changed
