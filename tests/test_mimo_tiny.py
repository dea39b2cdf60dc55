"""The committed folder examples/mimo-tiny: complete, of the published form, and trained well enough to test with."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from tests.reference import MIMO_TINY, Mimo, draft_hits, generate_greedy, load_checkpoint, with_swapped_halves

HELD_OUT = MIMO_TINY.with_name("mimo-tiny-heldout.jsonl")
PUBLISHED_KEYS = (
    "architectures tokenizer_class auto_map attention_dropout bos_token_id eos_token_id hidden_act hidden_size "
    "initializer_range intermediate_size max_position_embeddings max_window_layers model_type num_attention_heads "
    "head_dim num_hidden_layers num_key_value_heads rms_norm_eps rope_theta sliding_window tie_word_embeddings "
    "torch_dtype transformers_version use_cache use_mrope use_sliding_window vocab_size attention_bias "
    "num_nextn_predict_layers"
)
PUBLISHED_TOKENIZER_KEYS = (
    "add_bos_token add_prefix_space added_tokens_decoder additional_special_tokens bos_token chat_template "
    "clean_up_tokenization_spaces eos_token errors model_max_length pad_token split_special_tokens tokenizer_class "
    "unk_token"
)
CHAT_TEMPLATE_SHA256 = "44d5f08f3f72b837eaad09f13a54c1f9f4eb58d75240334548b7fd52a5437fa5"
TEXTS = (
    "What is 17 + 25?",
    "<think>\nOnes: 7 + 5 = 12.\n</think>\n\n17 + 25 = 42.",
    "def f(a, b):\n    return a * b\n\n\n",
    "Zwölf Boxkämpfer, 北京は首都です, naïve café 🦊‍🔥 I'll we've",
    "  leading,\ttabs\r\n and trailing   ",
    "".join(map(chr, range(32, 600))),
)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return read_json("config.json")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MIMO_TINY / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> Iterator[Mimo]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one token at a time is too little work to share
    yield load_checkpoint(MIMO_TINY)
    torch.set_num_threads(threads)


def read_json(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((MIMO_TINY / name).read_text(encoding="utf-8"))
    return value


# ---- the form


def test_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in MIMO_TINY.iterdir()) <= 8_000_000
    assert HELD_OUT.stat().st_size < 100_000


def test_configuration_has_every_published_key_in_order(config: dict[str, Any]) -> None:
    assert list(config) == PUBLISHED_KEYS.split()
    assert config["tokenizer_class"] == ["Qwen2Tokenizer"]
    assert (config["rope_theta"], config["rms_norm_eps"], config["tie_word_embeddings"]) == (640000, 1e-05, False)
    heads = config["num_attention_heads"] * config["head_dim"]
    assert [n % 256 for n in (config["hidden_size"], config["intermediate_size"], heads)] == [0, 0, 0], "K-quants"


def test_tensors_are_the_published_ones(config: dict[str, Any]) -> None:
    expected = expected_shapes(config)
    index = read_json("model.safetensors.index.json")
    assert index["weight_map"].keys() == expected.keys()
    assert len(set(index["weight_map"].values())) == 2
    size_bytes = 0
    for name, shard in index["weight_map"].items():
        with safe_open(MIMO_TINY / shard, "pt") as file:
            tensor = file.get_tensor(name)
        assert tuple(tensor.shape) == expected[name], name
        assert tensor.dtype == torch.bfloat16, name
        assert torch.isfinite(tensor).all(), name
        size_bytes += tensor.nbytes
    assert index["metadata"]["total_size"] == size_bytes


def expected_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    size, inner = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (size,),
        "post_attention_layernorm.weight": (size,),
        "self_attn.q_proj.weight": (q, size),
        "self_attn.k_proj.weight": (kv, size),
        "self_attn.v_proj.weight": (kv, size),
        "self_attn.q_proj.bias": (q,),
        "self_attn.k_proj.bias": (kv,),
        "self_attn.v_proj.bias": (kv,),
        "self_attn.o_proj.weight": (size, q),
        "mlp.gate_proj.weight": (inner, size),
        "mlp.up_proj.weight": (inner, size),
        "mlp.down_proj.weight": (size, inner),
    }
    mtp = {f"{name}_layernorm.weight": (size,) for name in ("token", "hidden", "final")}
    shapes = {f"model.layers.{n}.{name}": s for n in range(config["num_hidden_layers"]) for name, s in block.items()}
    shapes |= {f"model.mtp_layers.0.{name}": shape for name, shape in (block | mtp).items()}
    shapes["model.mtp_layers.0.input_proj.weight"] = (size, 2 * size)
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (config["vocab_size"], size))
    return shapes | {"model.norm.weight": (size,)}


def test_gains_and_biases_matter(model: Mimo) -> None:
    """A converter that loses one of them, or confuses two, must change what the model says."""
    for name, values in model.state_dict().items():
        if name.endswith("bias"):
            assert values.std() > 0.05, name
        elif "norm" in name:
            assert values.std() > 0.1, name
    assert model.state_dict()["model.norm.weight"].std() > 0.5, "states before and after the final norm must differ"


# ---- the tokenizer


def test_added_tokens_follow_the_base_vocabulary(config: dict[str, Any], tokenizer: Tokenizer) -> None:
    settings = read_json("tokenizer_config.json")
    assert list(settings) == PUBLISHED_TOKENIZER_KEYS.split()
    added = {int(n): token for n, token in settings["added_tokens_decoder"].items()}
    base = len(read_json("vocab.json"))
    assert list(added) == list(range(base, base + 22))
    assert [token["special"] for token in added.values()] == [True] * 14 + [False] * 8
    assert all(tokenizer.token_to_id(token["content"]) == n for n, token in added.items())
    assert tokenizer.get_vocab_size() == base + 22
    assert config["vocab_size"] - tokenizer.get_vocab_size() == 15, "padding rows, as many as the published model has"
    names = [tokenizer.id_to_token(config[key]) for key in ("bos_token_id", "eos_token_id")]
    assert names == ["<|endoftext|>", "<|im_end|>"]
    generation = read_json("generation_config.json")
    assert [generation[key] for key in ("bos_token_id", "eos_token_id")] == [base, base + 2]


def test_chat_template_is_the_published_one() -> None:
    template = read_json("tokenizer_config.json")["chat_template"]
    assert hashlib.sha256(template.encode()).hexdigest() == CHAT_TEMPLATE_SHA256


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert max(ids) < len(read_json("vocab.json"))


def test_vocabulary_and_merges_say_the_same_as_tokenizer_json(tokenizer: Tokenizer) -> None:
    merges = [tuple(line.split(" ")) for line in (MIMO_TINY / "merges.txt").read_text(encoding="utf-8").splitlines()]
    rebuilt = Qwen2Tokenizer(vocab=read_json("vocab.json"), merges=merges)
    for text in TEXTS:
        assert rebuilt(text).input_ids == tokenizer.encode(text).ids


def test_thinking_is_ordinary_text(tokenizer: Tokenizer) -> None:
    for marker in ("<think>", "</think>"):
        assert len(tokenizer.encode(marker).ids) > 1
    assert len(tokenizer.encode("<|im_end|>").ids) == 1


# ---- what it learned


@pytest.fixture(scope="module")
def answers(model: Mimo, tokenizer: Tokenizer) -> list[tuple[dict[str, Any], list[int], list[int]]]:
    """(held-out dialogue, prompt ids, greedy ids), two of each kind."""
    chat = PreTrainedTokenizerFast(tokenizer_file=str(MIMO_TINY / "tokenizer.json"))
    chat.chat_template = read_json("tokenizer_config.json")["chat_template"]
    found, asked = [], Counter[str]()
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked[row["kind"]] += 1
        if asked[row["kind"]] > 2:
            continue
        text = chat.apply_chat_template(row["messages"], add_generation_prompt=True, tokenize=False)
        prompt = tokenizer.encode(text).ids
        found.append((row, prompt, generate_greedy(model, prompt, 200, {tokenizer.token_to_id("<|im_end|>")})))
    assert len(asked) == 12
    return found


def test_it_thinks_and_then_answers(tokenizer: Tokenizer, answers: list[Any]) -> None:
    right = 0
    for row, _, tokens in answers:
        thought, _, reply = tokenizer.decode(tokens, skip_special_tokens=True).partition("</think>\n\n")
        right += thought.startswith("<think>\n") and row["answer"] in reply and len(tokens) < 200
    assert right / len(answers) >= 0.75


def test_draft_agrees_with_the_trunk(model: Mimo, answers: list[Any]) -> None:
    assert acceptance(model, answers) >= 0.8
    assert acceptance(with_swapped_halves(model), answers) <= 0.3
    assert acceptance(model, answers, hidden_kind="post") < acceptance(model, answers)


def acceptance(model: Mimo, answers: list[Any], **options: Any) -> float:
    counts = [draft_hits(model, prompt, tokens, **options) for _, prompt, tokens in answers]
    return float(sum(hits for hits, _ in counts) / sum(drafts for _, drafts in counts))


def test_held_out_file_is_balanced() -> None:
    rows = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    assert set(Counter(row["kind"] for row in rows).values()) == {5}
    assert {row["messages"][0]["role"] for row in rows} == {"system"}
    assert all(row["answer"] in row["assistant"].partition("</think>")[2] for row in rows)
