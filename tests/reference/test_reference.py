"""The torch reference against transformers' Qwen2, and the folders it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.reference import Cache, Mimo, load_checkpoint, mimo_config, random_checkpoint
from tests.reference.checkpoint_folder import randomize

SMALL = mimo_config(hidden_size=64, head_dim=32, intermediate_size=96, vocab_size=80)
IDS = torch.arange(40) * 7 % 80
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def qwen2(config: dict[str, Any], state: dict[str, Tensor]) -> Qwen2ForCausalLM:
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size "
        "rms_norm_eps tie_word_embeddings max_position_embeddings"
    )
    rope = {"rope_type": "default", "rope_theta": float(config["rope_theta"])}
    chosen = {name: config[name] for name in names.split()}
    model = Qwen2ForCausalLM(Qwen2Config(**chosen, rope_parameters=rope, attn_implementation="eager"))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return model.eval()


def random_model(**changes: Any) -> Mimo:
    model = Mimo(SMALL | changes)
    randomize(model, seed=3)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"rope_theta": 10000, "num_key_value_heads": 1}, {"rms_norm_eps": 1e-2}],
    ids=str,
)
def test_trunk_is_qwen2(changes: dict[str, Any]) -> None:
    model = random_model(**changes)
    trunk = {name: t for name, t in model.state_dict().items() if "mtp_layers" not in name}
    logits, _ = model.trunk(IDS)
    expected = qwen2(model.config, trunk)(IDS[None]).logits[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("hidden_kind", ["pre", "post"])
def test_mtp_layer_is_a_qwen2_block_behind_its_projection(hidden_kind: Any) -> None:
    """transformers runs the block: a one-block Qwen2 that is given the projected [state, embedding]."""
    model = random_model()
    _, hidden = model.trunk(IDS)
    state, layer = model.state_dict(), model.model.mtp_layers[0]
    prefix = "model.mtp_layers.0."
    of_block = {
        name.replace(prefix, "model.layers.0."): t
        for name, t in state.items()
        if name.startswith((prefix + "self_attn.", prefix + "mlp."))
        or name.removeprefix(prefix) in ("input_layernorm.weight", "post_attention_layernorm.weight")
    }  # fmt: skip
    outside = {"model.norm.weight": state[prefix + "final_layernorm.weight"]}
    outside |= {name: state[name] for name in ("lm_head.weight", "model.embed_tokens.weight")}
    oracle = qwen2(model.config | {"num_hidden_layers": 1}, of_block | outside)

    norm = torch.nn.functional.rms_norm
    given = hidden if hidden_kind == "pre" else norm(hidden, (64,), state["model.norm.weight"], 1e-5)
    hn = norm(given[:-1], (64,), state[prefix + "hidden_layernorm.weight"], 1e-5)
    e = norm(state["model.embed_tokens.weight"][IDS[1:]], (64,), state[prefix + "token_layernorm.weight"], 1e-5)
    projection = state[prefix + "input_proj.weight"]
    joined = hn @ projection[:, :64].T + e @ projection[:, 64:].T
    expected = oracle(inputs_embeds=joined[None]).logits[0]

    logits, _ = model.mtp(0, hidden[:-1], IDS[1:], hidden_kind=hidden_kind)
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    shifted, _ = model.mtp(0, hidden[:-1], IDS[1:], torch.arange(100, 139), hidden_kind=hidden_kind)
    torch.testing.assert_close(logits, shifted, atol=1e-3, rtol=1e-3)
    assert layer.input_proj.weight.shape == (64, 128)


@torch.no_grad()
def test_cache_and_batch_change_nothing() -> None:
    model = random_model()
    logits, hidden = model.trunk(IDS)
    drafts, _ = model.mtp(0, hidden[:-1], IDS[1:])
    cache: Cache = {}
    parts = [model.trunk(part, cache) for part in IDS.split([17, 1, 22])]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), logits, **TOLERANCE)
    rows = zip(hidden[:-1].split([30, 1, 8]), IDS[1:].split([30, 1, 8]), strict=True)
    drafted = [model.mtp(0, h, ids, cache=cache)[0] for h, ids in rows]
    torch.testing.assert_close(torch.cat(drafted), drafts, **TOLERANCE)
    batched, _ = model.trunk(torch.stack([IDS.flip(0), IDS]))
    torch.testing.assert_close(batched[1], logits, **TOLERANCE)


@pytest.mark.parametrize(("shards", "n_mtp", "dtype"), [(2, 1, "bfloat16"), (1, 0, "float16"), (3, 2, "float32")])
def test_random_checkpoint_folder(tmp_path: Path, shards: int, n_mtp: int, dtype: str) -> None:
    config = SMALL | {"num_nextn_predict_layers": n_mtp, "vocab_size": 1010}
    model = random_checkpoint(
        tmp_path, config, 5, dtype=getattr(torch, dtype), logit_scale=2.0, shards=shards, tokenizer_from=None
    )
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == shards
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards > 1)
    found: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as shard:
            found |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
    assert found.keys() == model.state_dict().keys()
    assert {str(t.dtype) for t in found.values()} == {f"torch.{dtype}"}
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == dtype
    again = load_checkpoint(tmp_path)
    assert all(torch.equal(again.state_dict()[name], t.float()) for name, t in found.items())
    with torch.no_grad():
        logits, hidden = again.trunk(torch.arange(500, 560))
        assert 1.2 < logits.std() < 3.0
        for n in range(n_mtp):
            drafted, hidden = again.mtp(n, hidden, torch.arange(60))
            assert 1.0 < drafted.std() < 3.5
