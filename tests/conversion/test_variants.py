"""The published variants and what fine-tunes do to them, each from its own configuration files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_gguf.conversion.checkpoint import read_checkpoint
from mimo_gguf.conversion.checkpoint_source import (
    ConversionOptions,
    ConversionPlan,
    as_model_source,
    plan_conversion,
)
from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_header import lay_out
from tests.checkpoints import CONFIG, mtp_shapes, tensor_shapes, write_checkpoint

CARD = """---
license: mit
base_model:
- XiaomiMiMo/MiMo-7B-Base
language:
- en
- zh
library_name: transformers
---
# A model
"""


def planned(folder: Path, model_id: str | None = None, options: ConversionOptions | None = None) -> ConversionPlan:
    checkpoint = read_checkpoint(folder, model_id=model_id, revision="f" * 40 if model_id else None)
    return plan_conversion(checkpoint, options or ConversionOptions())


def values(plan: ConversionPlan) -> dict[str, Any]:
    return {key: entry.value for key, entry in plan.metadata.items()}


@pytest.mark.parametrize(
    ("name", "changes", "n_ctx"),
    [
        ("MiMo-7B-Base", {"bos_token_id": None, "eos_token_id": None}, 128),
        ("MiMo-7B-SFT", {}, 128),
        ("MiMo-7B-RL-Zero", {}, 128),
        ("MiMo-7B-RL", {}, 128),
        ("MiMo-7B-RL-0530", {"max_position_embeddings": 256, "max_window_layers": 1}, 256),
    ],
)
def test_published_variants(tmp_path: Path, name: str, changes: dict[str, Any], n_ctx: int) -> None:
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    write_checkpoint(tmp_path / name, config=config)
    plan = planned(tmp_path / name, f"XiaomiMiMo/{name}")
    metadata = values(plan)
    assert plan.layout == metadata["general.architecture"] == "step35"
    assert plan.checkpoint.name == name
    assert metadata["general.name"] == name.replace("-", " ")
    assert metadata["general.organization"] == "XiaomiMiMo"
    assert metadata["general.source.url"] == f"https://huggingface.co/XiaomiMiMo/{name}/tree/{'f' * 40}"
    assert metadata["step35.context_length"] == n_ctx
    assert metadata["step35.attention.sliding_window_pattern"] == [False, False, True]
    assert metadata["tokenizer.ggml.eos_token_id"] == 258


def test_model_card(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "MiMo-7B-RL")
    (tmp_path / "MiMo-7B-RL" / "README.md").write_text(CARD)
    metadata = values(planned(tmp_path / "MiMo-7B-RL"))
    assert metadata["general.license"] == "mit"
    assert metadata["general.base_model.0.name"] == "MiMo 7B Base"
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/XiaomiMiMo/MiMo-7B-Base"
    assert metadata["general.languages"] == ["en", "zh"]


def test_broken_model_card_costs_only_its_metadata(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: [unclosed\n---\n")
    assert "general.license" not in values(planned(tmp_path))


ODD_CARDS = {
    "numbers": "license: 5\nbase_model: 7\ntags: 3\nlanguage: {a: b}\nmodel_name: [x]\nname: 5",
    "nested": "base_model: [[a]]\nlanguage: [1, 2]\ntags: [true, null, [x]]\nlicense: [mit, apache-2.0]\nauthor: 3",
    "tables": "base_model: [{name: 5}]\ndatasets: [{x: 1}]\nlicense: {a: 1}\nmodel_name: {a: 1}\nversion: 2024-01-01",
    "a list": "- a\n- b",
    "a date": "license: 2024-01-01",
    "half a character": 'license: "\\uD800"',
    "nested without end": "a: " + "[" * 1500,
}


@pytest.mark.parametrize("case", ODD_CARDS)
def test_odd_model_card_converts(tmp_path: Path, case: str) -> None:
    """Whatever its entries are, the header can be written, and texts stay texts."""
    write_checkpoint(tmp_path)
    (tmp_path / "README.md").write_text(f"---\n{ODD_CARDS[case]}\n---\n")
    plan = planned(tmp_path)
    assert lay_out(plan.metadata, ()).header
    general = {key: value for key, value in values(plan).items() if key.startswith("general.")}
    assert all(isinstance(general.get(key, ""), str) for key in ("general.name", "general.license", "general.author"))
    assert all(isinstance(tag, str) for tag in general.get("general.tags", []) + general.get("general.languages", []))
    assert {"nested": "mit", "a date": "2024-01-01", "numbers": "5"}.get(case) == general.get("general.license")


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"temperature": 1, "top_p": 0.9, "top_k": 20}, {"temp": 1.0, "top_p": 0.9, "top_k": 20}),
        ({"temperature": 0.6, "do_sample": False}, {}),
        ({"temperature": "warm", "top_p": True, "top_k": 10**30, "min_p": float("nan")}, {}),
        ({"top_k": 2.5}, {"top_k": 2}),
    ],
)
def test_recommended_sampling(tmp_path: Path, stated: dict[str, Any], expected: dict[str, float]) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(stated))
    plan = planned(tmp_path)
    assert lay_out(plan.metadata, ()).header
    found = {key: value for key, value in values(plan).items() if key.startswith("general.sampling")}
    assert found == {f"general.sampling.{key}": value for key, value in expected.items()}


def test_snapshot_in_the_hubs_cache(tmp_path: Path) -> None:
    """A folder named after a commit, files that are links out of it: the model keeps its name and source."""
    cache = tmp_path / "models--XiaomiMiMo--MiMo-7B-RL"
    write_checkpoint(cache / "blobs")
    snapshot = cache / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    for blob in (cache / "blobs").iterdir():
        try:
            (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
        except OSError:
            pytest.skip("no symbolic links here")
    plan = plan_conversion(read_checkpoint(snapshot))
    assert plan.checkpoint.name == "MiMo-7B-RL"
    assert values(plan)["general.source.url"] == f"https://huggingface.co/XiaomiMiMo/MiMo-7B-RL/tree/{'c' * 40}"
    with open_model(str(snapshot)) as source:
        source.tensors[0].read_rows(0, 1, np.empty((1, source.tensors[0].info.row_bytes), np.uint8))


def test_fine_tune_with_a_name_of_its_own(tmp_path: Path) -> None:
    """`_name_or_path` names the base model in a fine-tune; the folder's name is the model's."""
    write_checkpoint(tmp_path / "My-Tune-v2", config=CONFIG | {"_name_or_path": "XiaomiMiMo/MiMo-7B-SFT"})
    metadata = values(planned(tmp_path / "My-Tune-v2"))
    assert metadata["general.name"] == "My Tune v2"
    assert "SFT" not in str(metadata["general.name"])


@pytest.mark.parametrize("layout", ["step35", "qwen2"])
@pytest.mark.parametrize("lm_head", [True, False])
def test_tied_embeddings(tmp_path: Path, layout: str, lm_head: bool) -> None:
    config = CONFIG | {"tie_word_embeddings": True}
    data = write_checkpoint(tmp_path, config=config, shapes=tensor_shapes(config, lm_head=lm_head))
    with open_model(str(tmp_path), ConversionOptions(layout=layout)) as source:
        tensors = {tensor.info.name: tensor for tensor in source.tensors}
        assert any("the stored one is used" in note for note in source.notes) == lm_head
        if layout == "qwen2" and not lm_head:  # llama.cpp reuses the embedding
            assert "output.weight" not in tensors
            return
        output = tensors["output.weight"]
        rows = np.empty((output.info.n_rows, output.info.row_bytes), np.uint8)
        output.read_rows(0, output.info.n_rows, rows)
        assert rows.tobytes() == data["lm_head.weight" if lm_head else "model.embed_tokens.weight"]


@pytest.mark.parametrize("stated", [False, None])
def test_a_missing_lm_head_must_be_tied(tmp_path: Path, stated: bool | None) -> None:
    """transformers would make up random numbers for it."""
    config = CONFIG | {"tie_word_embeddings": stated}
    write_checkpoint(tmp_path, config=config, shapes=tensor_shapes(CONFIG, lm_head=False))
    with pytest.raises(CheckpointError, match=r"1 tensor missing: lm_head\.weight, and config") as caught:
        planned(tmp_path)
    assert "tie_word_embeddings" in str(caught.value.hint)


def test_single_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, n_shards=1)
    assert len(planned(tmp_path).mapping.mapped) == len(tensor_shapes(CONFIG))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_default_type_is_lossless(tmp_path: Path, dtype: str) -> None:
    write_checkpoint(tmp_path, dtype=dtype)
    assert planned(tmp_path).float_type is GgmlType[dtype]


def test_mixed_types_are_told(tmp_path: Path) -> None:
    """The commonest type is the default; which matrices it would round is known."""
    odd = "model.mtp_layers.0.input_proj.weight"
    write_checkpoint(tmp_path, dtypes={odd: "F32", "model.norm.weight": "F32"})
    plan = planned(tmp_path)
    assert plan.float_type is GgmlType.BF16
    assert plan.matrix_types[1:] == ((GgmlType.F32, 1),)


def test_dropped_once_whatever_the_reasons(tmp_path: Path) -> None:
    """A rope table of an MTP layer in the qwen2 layout falls under two rules."""
    name = "model.mtp_layers.0.self_attn.rotary_emb.inv_freq"
    write_checkpoint(tmp_path, shapes=tensor_shapes(CONFIG) | {name: (8,)})
    dropped = planned(tmp_path, options=ConversionOptions(mtp=False)).dropped
    assert sorted(tensor.hf for tensor in dropped) == sorted([*mtp_shapes(0, CONFIG), name])
    assert {tensor.reason for tensor in dropped} == {"the qwen2 layout has no place for MTP layers"}


def test_numbers_written_as_floats(tmp_path: Path) -> None:
    config = CONFIG | {"hidden_size": 64.0, "num_hidden_layers": 2.0}
    write_checkpoint(tmp_path, config=config, shapes=tensor_shapes(CONFIG))
    metadata = values(planned(tmp_path))
    assert metadata["step35.embedding_length"] == 64 and isinstance(metadata["step35.embedding_length"], int)


def test_without_mtp_the_layout_is_qwen2(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "num_nextn_predict_layers"}
    write_checkpoint(tmp_path, config=config, shapes=tensor_shapes(config, 0))
    plan = planned(tmp_path)
    assert (plan.layout, plan.n_mtp) == ("qwen2", 0)
    assert values(plan)["qwen2.block_count"] == 2
    assert "qwen2.nextn_predict_layers" not in plan.metadata


def test_no_mtp(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    plan = planned(tmp_path, options=ConversionOptions(mtp=False))
    assert (plan.layout, plan.n_mtp) == ("qwen2", 0)
    assert len(plan.dropped) == len(mtp_shapes(0, CONFIG))


def test_further_mtp_layers(tmp_path: Path) -> None:
    """MiMo-7B-MTPs holds layers 1 and 2, for a checkpoint that has layer 0; a layer 0 of its own is not taken."""
    write_checkpoint(tmp_path / "model")
    shapes = mtp_shapes(0, CONFIG) | mtp_shapes(1, CONFIG) | mtp_shapes(2, CONFIG)
    write_checkpoint(tmp_path / "MTPs", shapes=shapes, tokenizer=False, seed=5)
    plan = planned(tmp_path / "model", options=ConversionOptions(mtp_layers=tmp_path / "MTPs"))
    metadata = values(plan)
    assert plan.n_mtp == metadata["step35.nextn_predict_layers"] == 3
    assert metadata["step35.block_count"] == 5
    assert metadata["step35.attention.sliding_window_pattern"] == [False, False, True, True, True]
    assigned = {tensor.gguf: tensor.hf for tensor in plan.mapping.mapped}
    assert assigned["blk.4.nextn.eh_proj.weight"] == "model.mtp_layers.2.input_proj.weight"
    folders = [plan.weights[f"model.mtp_layers.{n}.input_proj.weight"].path.parent.name for n in range(3)]
    assert folders == ["model", "MTPs", "MTPs"]


def test_further_mtp_layers_with_a_gap(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    write_checkpoint(tmp_path / "MTPs", shapes=mtp_shapes(2, CONFIG), tokenizer=False)
    with pytest.raises(CheckpointError, match=r"16 tensors missing: model\.mtp_layers\.1\."):
        planned(tmp_path / "model", options=ConversionOptions(mtp_layers=tmp_path / "MTPs"))


def test_fingerprint_tells_inputs_apart(tmp_path: Path) -> None:
    """A run is resumed only if nothing changed: not the shards, the options, or the recipe."""
    write_checkpoint(tmp_path)
    plan = planned(tmp_path)

    def fingerprint(plan: ConversionPlan) -> str:
        with as_model_source(plan, "test") as source:
            return source.fingerprint

    seen = [fingerprint(plan), fingerprint(replace(plan, recipe=replace(plan.recipe, digest="another")))]
    seen.append(fingerprint(planned(tmp_path, options=ConversionOptions(mtp=False))))
    shard = next(tmp_path.glob("*.safetensors"))
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1_000_000_000))
    seen.append(fingerprint(plan))
    assert len(set(seen)) == 4


def test_head_dim_defaults_to_the_quotient(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "head_dim"}
    write_checkpoint(tmp_path, config=config, shapes=tensor_shapes(CONFIG))
    assert values(planned(tmp_path))["step35.attention.key_length"] == 16


def test_rope_frequencies_are_dropped_with_a_reason(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    write_checkpoint(tmp_path, shapes=tensor_shapes(CONFIG) | {name: (8,)})
    (drop,) = planned(tmp_path).dropped
    assert drop.hf == name
    assert "rope_theta" in drop.reason
