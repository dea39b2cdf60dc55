"""Files that are well-formed and say what no model can be: each is refused with what is wrong, and none reaches
llama.cpp. Most of the table's rows ended the process, hung it or gave a traceback before there was a check."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType as Kind

from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.inspection import as_json, inspect_gguf, layout_line
from mimo_gguf.core.key_rules import key_rules
from mimo_gguf.core.model_rules import RULES
from mimo_gguf.core.model_source import MetaValue, array, boolean, float32, string, uint32
from mimo_gguf.core.runnable import check_measurable, check_runnable
from mimo_gguf.core.vocabulary_rules import vocabulary_fault
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.fit.asked import ask_memory
from mimo_gguf.fit.weigh import plan_fit
from mimo_gguf.hardware.devices import host_device
from mimo_gguf.memory.run import RunSettings
from mimo_gguf.runtime.model import Model
from tests.fuzz.gguf_bytes import GgufParts, Tensor, put_together, take_apart
from tests.tiny_models import make_model

Change = Callable[[GgufParts], None]
TOKENS = "tokenizer.ggml.tokens"


@pytest.fixture(scope="module")
def step35(tmp_path_factory: pytest.TempPathFactory) -> GgufParts:
    return take_apart(make_model(tmp_path_factory.mktemp("step35")))


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> GgufParts:
    return take_apart(make_model(tmp_path_factory.mktemp("qwen2"), n_mtp=0))


def said(key: str, value: MetaValue | None) -> Change:
    """The file says `value` under `key`, or nothing."""

    def change(parts: GgufParts) -> None:
        full = key if key.startswith(("tokenizer.", "general.")) else f"{parts.architecture}.{key}"
        parts.metadata = {name: entry for name, entry in parts.metadata.items() if name != full}
        if value is not None:
            parts.metadata[full] = value

    return change


def tokens(edit: Callable[[list[str]], list[str]]) -> Change:
    def change(parts: GgufParts) -> None:
        parts.metadata[TOKENS] = array(Kind.STRING, edit(list(parts.metadata[TOKENS].value)))

    return change


def tensor(name: str, edit: Callable[[Tensor], Tensor | None]) -> Change:
    def change(parts: GgufParts) -> None:
        edited = [edit(each) if each.name == name else each for each in parts.tensors]
        parts.tensors = [each for each in edited if each is not None]

    return change


def with_tensor(name: str) -> Change:
    def change(parts: GgufParts) -> None:
        parts.tensors.append(Tensor(name, (64,), 0, bytes(256)))

    return change


def renamed(name: str) -> Callable[[Tensor], Tensor]:
    return lambda t: Tensor(name, t.dims, t.ggml_type, t.data)


def retyped(ggml_type: int) -> Callable[[Tensor], Tensor]:
    return lambda t: Tensor(t.name, t.dims, ggml_type, t.data).sized()


def aligned(parts: GgufParts) -> None:
    parts.alignment = 8
    parts.metadata["general.alignment"] = uint32(8)


def uint16(value: int) -> MetaValue:
    return MetaValue(Kind.UINT16, value)


# The tiny model has 3 blocks, the last of them MTP; 64 wide; 4 heads of 16 share 2 KV heads; 272 tokens.
WRONG: dict[str, tuple[Change, str]] = {
    "no alignment for ggml": (aligned, "general.alignment is 8"),
    "alignment of another type": (said("general.alignment", boolean(True)), "general.alignment is True"),
    "a key that llama.cpp reads as another": (said("general.alignment\0x", uint32(8)), "has a NUL in it"),
    "architecture is a number": (said("general.architecture", uint32(3)), "architecture '3', not a MiMo file"),
    "no blocks": (said("block_count", uint32(0)), "block_count is '0' (uint32), not a whole number from 1 to 512"),
    "blocks beyond memory": (said("block_count", uint32(1 << 31)), "block_count is '2147483648'"),
    "blocks that are not there": (said("block_count", uint32(4)), "sliding_window_pattern has 3 entries for 4 blocks"),
    "a count as a float": (said("block_count", float32(math.nan)), "block_count is 'nan' (float32)"),
    "a count as a long": (said("embedding_length", MetaValue(Kind.UINT64, 64)), "embedding_length is '64' (uint64)"),
    "a count as a list": (said("attention.head_count", array(Kind.UINT32, [4, 4, 4])), "an array of 3 x uint32"),
    "a count that is missing": (said("feed_forward_length", None), "feed_forward_length is missing"),
    "all blocks are MTP": (said("nextn_predict_layers", uint32(3)), "nextn_predict_layers"),
    "more MTP than blocks": (said("nextn_predict_layers", uint32(1 << 31)), "nextn_predict_layers"),
    "two MTP blocks of one": (said("nextn_predict_layers", uint32(2)), "tensor blk.1.nextn.eh_proj.weight is missing"),
    "no context": (said("context_length", uint32(0)), "context_length"),
    "heads without width": (said("attention.key_length", uint32(0)), "attention.key_length is '0'"),
    "heads of another width": (said("attention.key_length", uint32(8)), "rotary dimensions 16 are not even, or beyond"),
    "no heads": (said("attention.head_count", uint32(0)), "attention.head_count is '0'"),
    "no KV heads": (said("attention.head_count_kv", uint32(0)), "attention.head_count_kv is '0'"),
    "KV heads that do not divide": (said("attention.head_count_kv", uint32(3)), "cannot share 3 KV heads"),
    "width of another model": (said("embedding_length", uint32(128)), "has shape [272, 64], the metadata says"),
    "rotation of nothing": (said("rope.dimension_count", uint32(0)), "rope.dimension_count is '0'"),
    "rotation of half a pair": (said("rope.dimension_count", uint32(1)), "rotary dimensions 0.5"),
    "rotation of an odd number": (said("rope.dimension_count", uint32(6)), "rotary dimensions 3 "),
    "rotation beyond the head": (said("rope.dimension_count", uint32(64)), "rotary dimensions 32"),
    "rotation of MTP beyond the head": (said("rope.dimension_count_swa", uint32(18)), "rotary dimensions 18 of MTP"),
    "rotation of MTP left out": (said("rope.dimension_count_swa", None), "rotary dimensions 32 of MTP"),
    "rotation by infinity": (said("rope.freq_base", float32(math.inf)), "rope.freq_base is 'inf'"),
    "rotation by less than nothing": (said("rope.freq_base", float32(-1.0)), "rope.freq_base is '-1.0'"),
    "rotation of MTP by nothing": (said("rope.freq_base_swa", float32(0.0)), "rope.freq_base_swa is '0.0'"),
    "unknown scaling": (said("rope.scaling.type", string("nonsense")), "rope.scaling.type is 'nonsense'"),
    "no epsilon": (said("attention.layer_norm_rms_epsilon", float32(0.0)), "layer_norm_rms_epsilon is '0.0'"),
    "epsilon that is none": (said("attention.layer_norm_rms_epsilon", float32(math.nan)), "epsilon is 'nan'"),
    "epsilon below zero": (said("attention.layer_norm_rms_epsilon", float32(-1e-5)), "layer_norm_rms_epsilon is"),
    "no window anywhere": (
        said("attention.sliding_window_pattern", array(Kind.BOOL, [False] * 3)),
        "sliding_window_pattern is an array of 3 x bool",
    ),
    "a pattern too short": (said("attention.sliding_window_pattern", array(Kind.BOOL, [True])), "has 1 entries for 3"),
    "a pattern too long": (said("attention.sliding_window_pattern", array(Kind.BOOL, [True] * 9)), "has 9 entries"),
    "a pattern of texts": (said("attention.sliding_window_pattern", array(Kind.STRING, ["x"] * 3)), "x string"),
    "a window that masks": (said("attention.sliding_window", uint32(100)), "would mask part of a context of 128"),
    "other heads in the window": (said("attention.key_length_swa", uint32(8)), "heads of 8 and 16 in sliding-window"),
    "experts": (said("expert_count", uint32(8)), "expert_count is '8' (uint32), not absent or 0"),
    "experts in use": (said("expert_used_count", uint32(1)), "expert_used_count"),
    "no width of experts": (said("expert_feed_forward_length", None), "expert_feed_forward_length is missing"),
    "a classifier": (said("classifier.output_labels", array(Kind.STRING, ["yes"])), "classifier.output_labels"),
    "a model that looks ahead": (said("attention.causal", boolean(False)), "attention.causal is 'False'"),
    "rows of another vocabulary": (said("vocab_size", uint32(1 << 20)), "vocab_size is 1048576"),
    "a tensor of a block far off": (
        tensor("blk.1.attn_q.bias", renamed("blk.4294967296.attn_q.weight")),
        "tensor blk.4294967296.attn_q.weight, with a block_count of 3",
    ),
    "a tensor of a block below zero": (with_tensor("blk.-1.attn_q.weight"), "'blk.-1.attn_q.weight' has no place"),
    "digits of another script": (with_tensor("blk.٢.attn_q.bias"), "has no place"),
    "a tensor of another model": (with_tensor("blk.0.attn_q_norm.weight"), "'blk.0.attn_q_norm.weight' has no place"),
    "a tensor of the MTP block in the trunk": (with_tensor("blk.0.nextn.enorm.weight"), "has no place"),
    "a tensor that is missing": (tensor("blk.1.ffn_up.weight", lambda _: None), "blk.1.ffn_up.weight is missing"),
    "an output that is missing": (tensor("output.weight", lambda _: None), "tensor output.weight is missing"),
    "a transposed tensor": (
        tensor("blk.1.ffn_up.weight", lambda t: Tensor(t.name, t.dims[::-1], 0, t.data)),
        "blk.1.ffn_up.weight has shape [64, 96], the metadata says [96, 64]",
    ),
    "a vector in half precision": (tensor("blk.0.attn_norm.weight", retyped(1)), "a vector of type F16"),
    "a quantized vector": (tensor("blk.0.attn_q.bias", retyped(8)), "a vector of type Q8_0"),
    "a matrix of integers": (tensor("blk.0.attn_q.weight", retyped(26)), "is of type I32, with which"),
    "a matrix of activations": (tensor("blk.0.attn_q.weight", retyped(9)), "is of type Q8_1, with which"),
    "another tokenizer": (said("tokenizer.ggml.model", string("llama")), "tokenizer.ggml.model is 'llama', not 'gpt2'"),
    "no tokenizer": (said("tokenizer.ggml.model", None), "tokenizer.ggml.model is missing"),
    "a tokenizer that is a number": (said("tokenizer.ggml.model", uint32(2)), "tokenizer.ggml.model is '2'"),
    "no tokens": (said(TOKENS, None), "tokens is missing or not an array of string"),
    "a token twice": (tokens(lambda t: [*t[:9], t[4], *t[10:]]), "tokens 4 and 9 are the same"),
    "a token twice, as llama.cpp reads it": (tokens(lambda t: [*t[:9], t[4] + "\0x", *t[10:]]), "token 9 has a NUL"),
    "a token twice, as it is named": (tokens(lambda t: ["", "[EMPTY_0]", *t[2:]]), "tokens 0 and 1 are the same"),
    "a token too few": (tokens(lambda t: t[:-1]), "tokens has 271 entries, the embedding 272 rows"),
    "a token too many": (tokens(lambda t: [*t, "more"]), "tokens has 273 entries, the embedding 272 rows"),
    "types of too few tokens": (said("tokenizer.ggml.token_type", array(Kind.INT32, [1])), "token_type has 1 entries"),
    "types that are texts": (said("tokenizer.ggml.token_type", string("normal")), "token_type is missing or not an"),
    "types of other width": (said("tokenizer.ggml.token_type", array(Kind.INT64, [1] * 272)), "not an array of int32"),
    "tokens that are bytes": (said("tokenizer.ggml.token_type", array(Kind.INT32, [6] * 272)), "token 0 is of type 6"),
    "scores of other tokens": (said("tokenizer.ggml.scores", array(Kind.FLOAT32, [0.0])), "scores has 1 entries"),
    "no merges": (said("tokenizer.ggml.merges", array(Kind.STRING, [])), "merges is missing or not an array"),
    "merges that are numbers": (said("tokenizer.ggml.merges", array(Kind.INT32, [1])), "not an array of string"),
    "an end that is no token": (said("tokenizer.ggml.eos_token_id", uint32(272)), "eos_token_id is 272, with 272"),
    "an end that is a text": (said("tokenizer.ggml.eos_token_id", string("</s>")), "not a token id"),
    "an end below zero": (said("tokenizer.ggml.eot_token_id", MetaValue(Kind.INT32, -1)), "(int32), not a token id"),
    "a beginning that is neither": (said("tokenizer.ggml.add_bos_token", uint32(1)), "is not true or false"),
    "a template that is a number": (said("tokenizer.chat_template", uint32(1)), "chat_template is not a text"),
    "a name that is a list": (said("general.name", array(Kind.STRING, ["a"])), "general.name is an array of 1"),
}  # fmt: skip


def write(parts: GgufParts, change: Change, folder: Path) -> Path:
    changed = parts.copy()
    change(changed)
    path = folder / "changed.gguf"
    path.write_bytes(put_together(changed))
    return path


@pytest.mark.parametrize("case", WRONG)
def test_what_no_model_can_be(case: str, step35: GgufParts, tmp_path: Path) -> None:
    change, expected = WRONG[case]
    path = write(step35, change, tmp_path)
    with pytest.raises(GgufError) as caught:
        check_runnable(read_gguf(path))
    assert expected in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("case", ["blocks that are not there", "a token twice", "all blocks are MTP", "no context"])
def test_inspect_shows_what_is_wrong(case: str, step35: GgufParts, tmp_path: Path) -> None:
    """A file that nothing runs can still be looked at."""
    change, expected = WRONG[case]
    found = inspect_gguf(read_gguf(write(step35, change, tmp_path)))
    assert expected in str(found.fault)
    assert layout_line(found).startswith("step35: llama.cpp cannot run it: ")
    assert as_json(found, tensors=True)["fault"] == found.fault
    assert inspect_gguf(read_gguf(write(step35, lambda _: None, tmp_path))).fault is None


OF_QWEN2: dict[str, tuple[Change, str]] = {
    "MTP blocks": (said("nextn_predict_layers", uint32(1)), "nextn_predict_layers is '1' (uint32), not absent or 0"),
    "half a rotation": (said("rope.dimension_count", uint32(8)), "rotary dimensions 8 to be the same"),
    "more heads": (said("attention.head_count", uint32(8)), "cannot hold 8 heads of 16 beside a hidden size of 64"),
    "other values": (said("attention.value_length", uint32(8)), "value_length 8"),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_QWEN2)
def test_what_no_qwen2_can_be(case: str, qwen2: GgufParts, tmp_path: Path) -> None:
    change, expected = OF_QWEN2[case]
    with pytest.raises(GgufError) as caught:
        check_runnable(read_gguf(write(qwen2, change, tmp_path)))
    assert expected in caught.value.message


RIGHT: dict[str, Change] = {
    "as it is": lambda _: None,
    "no experts, said": said("expert_count", uint32(0)),
    "half of each head rotated": said("rope.dimension_count", uint32(16)),
    "an alignment of its own": lambda parts: (
        setattr(parts, "alignment", 64), said("general.alignment", uint32(64))(parts)
    )[1],
    "a key of a later llama.cpp": said("something.new", string("x")),
    "one empty token": tokens(lambda t: ["", *t[1:]]),
    "no token types": said("tokenizer.ggml.token_type", None),
    "no biases": lambda parts: setattr(parts, "tensors", [t for t in parts.tensors if not t.name.endswith(".bias")]),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_unusual_runs(case: str, step35: GgufParts, tmp_path: Path) -> None:
    """The other side: no rule is stricter than llama.cpp, which answers from each of these."""
    path = write(step35, RIGHT[case], tmp_path)
    with Model.load(path, n_ctx=64, options=SessionOptions(n_threads=1)) as model:
        assert model.complete("he", max_tokens=2, temperature=0).tokens


def doors(path: Path) -> Iterator[Callable[[], Any]]:
    """Every way of ours from a file to llama.cpp or to the memory model."""
    yield lambda: Model.load(path, n_ctx=64)
    yield lambda: Model.open(path, SessionOptions(n_ctx=64))
    yield lambda: plan_fit(path, n_ctx=64, devices=[host_device()])
    yield lambda: ask_memory(path, RunSettings(n_ctx=64))


@pytest.mark.parametrize("case", ["blocks beyond memory", "a token twice", "a vector in half precision"])
def test_every_door_is_guarded(case: str, step35: GgufParts, tmp_path: Path) -> None:
    change, expected = WRONG[case]
    for door in doors(write(step35, change, tmp_path)):
        with pytest.raises(GgufError) as caught:
            door()
        assert expected in caught.value.message


def test_a_file_without_a_vocabulary_is_measured_and_not_run(step35: GgufParts, tmp_path: Path) -> None:
    path = write(step35, said("tokenizer.ggml.model", string("none")), tmp_path)
    check_measurable(read_gguf(path))
    assert plan_fit(path, n_ctx=64, devices=[host_device()]).fits
    with pytest.raises(GgufError, match="it has no vocabulary"):
        Model.load(path)


@pytest.mark.parametrize("key", ["split.count", "split.no"])
@pytest.mark.parametrize("value", [string("2"), float32(math.nan), array(Kind.UINT16, [2]), uint32(2)])
def test_a_number_of_parts_of_another_type(key: str, value: MetaValue, step35: GgufParts, tmp_path: Path) -> None:
    changed = step35.copy()
    changed.metadata |= {"split.count": uint16(2), "split.no": uint16(0), key: value}
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(put_together(changed))
    with pytest.raises(GgufError, match=f"{key} is a .*, not a uint16"):
        read_gguf(path)


@pytest.mark.parametrize("layout", ["step35", "qwen2"])
def test_a_valid_file_keeps_every_rule(layout: str, step35: GgufParts, qwen2: GgufParts) -> None:
    """Each rule is about keys that exist or may: a misspelt key would guard nothing."""
    metadata = (step35 if layout == "step35" else qwen2).metadata
    rules = dict(key_rules(layout))
    assert {key for key in metadata if key.startswith(f"{layout}.")} <= set(rules)
    assert all(rule.allows_entry(metadata[key]) for key, rule in rules.items() if key in metadata)
    assert all(layout in rule.layouts or len(rule.layouts) == 1 for rule in RULES)


def test_a_vocabulary_of_full_size_is_checked_at_once() -> None:
    """Milliseconds of CPU time; the bound is for slow machines. It is what `fit` takes longer by."""
    n = 151_680
    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        TOKENS: array(Kind.STRING, [f"token {number}" for number in range(n)]),
        "tokenizer.ggml.token_type": array(Kind.INT32, [1] * n),
        "tokenizer.ggml.merges": array(Kind.STRING, ["a b"] * n),
    }
    start = time.process_time()
    assert vocabulary_fault(metadata, n) is None
    assert time.process_time() - start < 0.25
