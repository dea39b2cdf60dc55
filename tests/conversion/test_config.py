"""config.json: what transformers reads is known, what it means is the same, and what is not known is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_gguf.conversion.checkpoint import read_checkpoint
from mimo_gguf.conversion.checkpoint_source import ConversionPlan, plan_conversion
from mimo_gguf.conversion.config import resolve_config
from mimo_gguf.conversion.recipe import load_recipe
from mimo_gguf.core.errors import CheckpointError
from tests.checkpoints import CONFIG, PUBLISHED_FACTS, tensor_shapes, write_checkpoint
from tests.conversion.converted import convert

RECIPE = load_recipe("MiMoForCausalLM")
KNOWN = {*RECIPE.used, *RECIPE.equals, *RECIPE.harmless, "rope_parameters", "rope_scaling"}
WITHOUT_THETA = {key: value for key, value in CONFIG.items() if key != "rope_theta"}


def resolved(config: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    return resolve_config(RECIPE, config, "here")


def planned(folder: Path, config: dict[str, Any]) -> ConversionPlan:
    write_checkpoint(folder, config=config, shapes=tensor_shapes(CONFIG))
    return plan_conversion(read_checkpoint(folder))


def by_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """The rope settings that transformers takes from this config.json."""
    from transformers import Qwen2Config

    return dict(Qwen2Config(**json.loads(json.dumps(config))).rope_parameters)


def test_every_key_transformers_reads_is_known() -> None:
    from transformers import GenerationConfig, Qwen2Config

    read = {field.name for field in dataclasses.fields(Qwen2Config)} | set(Qwen2Config().to_dict())
    read |= set(GenerationConfig._get_default_generation_params())
    assert read - KNOWN == set()


def test_every_key_the_published_config_has_is_known() -> None:
    config = json.loads((PUBLISHED_FACTS / "config.json").read_text())
    assert set(config) - KNOWN == set()
    assert resolved(config)[1] == ()


def test_a_key_stands_at_one_place() -> None:
    assert not RECIPE.used & RECIPE.harmless
    assert not (RECIPE.used | RECIPE.harmless) & RECIPE.equals.keys()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 640000},
        {"rope_parameters": {"rope_theta": 640000, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 640000.0, "rope_type": "default"}, "rope_theta": 640000},
        {"rope_parameters": {"rope_theta": 640000, "rope_type": "default", "partial_rotary_factor": 1.0}},
        {"rope_theta": 640000, "rope_scaling": {"rope_type": "default"}},
        {"rope_theta": 640000, "rope_scaling": {"type": "default"}},
        {"rope_theta": 640000, "rope_scaling": {}, "rope_parameters": None},
        {"rope_theta": 640000, "layer_types": ["full_attention"] * 2, "partial_rotary_factor": 1},
    ],
)
def test_plain_rotation_wherever_it_is_stated(rope: dict[str, Any]) -> None:
    config, notes = resolved(WITHOUT_THETA | rope)
    assert notes == ()
    assert config["rope_theta"] == by_transformers(WITHOUT_THETA | rope)["rope_theta"] == 640000


def test_rope_nested_by_type_of_layer() -> None:
    full = {"rope_theta": 640000, "rope_type": "default"}
    assert resolved(WITHOUT_THETA | {"rope_parameters": {"full_attention": full}})[0]["rope_theta"] == 640000
    with pytest.raises(CheckpointError, match=r"contradicts itself: rope_parameters\.full_attention\.rope_theta"):
        resolved(WITHOUT_THETA | {"rope_parameters": {"full_attention": full, "x": full | {"rope_theta": 1}}})


def test_saved_by_transformers_5(tmp_path: Path) -> None:
    """The whole way: written by transformers itself, read here, the right base in the file."""
    from gguf import GGUFReader
    from transformers import Qwen2Config

    saved = Qwen2Config(**CONFIG).to_dict()
    assert "rope_theta" not in saved
    write_checkpoint(
        tmp_path / "m", config=saved | {"architectures": ["MiMoForCausalLM"]}, shapes=tensor_shapes(CONFIG)
    )
    fields = GGUFReader(convert(tmp_path / "m", tmp_path / "out.gguf")).fields
    assert fields["step35.rope.freq_base"].contents() == fields["step35.rope.freq_base_swa"].contents() == 640000


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "yarn, version 5": ({"rope_parameters": {"rope_theta": 640000, "rope_type": "yarn", "factor": 4.0}}, "rope_type"),
    "yarn, version 4": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, r"rope_scaling\.type"),
    "linear": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"rope_scaling\.rope_type"),
    "default with a factor": ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, r"rope_scaling\.factor"),
    "sections": ({"rope_scaling": {"type": "default", "mrope_section": [1, 2, 3]}}, "mrope_section"),
    "two types": ({"rope_scaling": {"type": "yarn", "rope_type": "default"}}, r"rope_scaling\.type"),
    "part of a head, version 5": (
        {"rope_parameters": {"rope_theta": 640000, "rope_type": "default", "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    "part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "two bases": ({"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}}, "contradicts itself"),
    "rope in words": ({"rope_parameters": "default"}, "not a table"),
    "sliding layers": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    "windows": ({"use_sliding_window": True}, "use_sliding_window"),
    "scaled logits": ({"logit_scale": 0.0625}, "logit_scale"),
    "capped logits": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "capped attention": ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "experts": ({"num_experts": 8}, "num_experts"),
    "settings of single layers": ({"per_layer_config": {"1": {"hidden_act": "gelu"}}}, "per_layer_config"),
    "quantized": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantized already.*\(gptq, 4 bits\)"),
    "quantized by MLX": ({"quantization": {"group_size": 64, "bits": 4}}, "quantized already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_arithmetic_is_refused(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        planned(tmp_path, CONFIG | change)
    assert caught.value.hint


def test_no_base_at_all(tmp_path: Path) -> None:
    """transformers would take 10000, which no MiMo has."""
    with pytest.raises(CheckpointError, match="rope_theta is missing"):
        planned(tmp_path, WITHOUT_THETA)


def test_unknown_keys_are_told(tmp_path: Path) -> None:
    plan = planned(tmp_path, CONFIG | {"sparkle": 0.3, "glitter": None, "list": list(range(100))})
    assert [note.split(",")[0] for note in plan.notes][1:] == ["config.json has sparkle = 0.3"]
    assert all(len(note) < 200 for note in plan.notes)


def test_published_checkpoint() -> None:
    """What the README says of it: 451 tensors, 7,833,409,536 parameters, every name with its place."""
    from mimo_gguf.conversion.dimensions import Dimensions
    from mimo_gguf.conversion.mapping import plan_mapping, plan_metadata

    config = json.loads((PUBLISHED_FACTS / "config.json").read_text())
    index = json.loads((PUBLISHED_FACTS / "model.safetensors.index.json").read_text())
    shapes = tensor_shapes(config)
    names = tuple(index["weight_map"])
    assert set(names) == set(shapes)
    dims = Dimensions(resolved(config)[0], RECIPE.defaults, {"mtp_layers": 1}, "here")
    mapping = plan_mapping(RECIPE, names, dims, "step35", tied=False)
    assert len(mapping.mapped) == 451
    assert mapping.dropped == ()
    assert {tensor.hf: tensor.shape for tensor in mapping.mapped} == shapes
    n_parameters = sum(int(np.prod(tensor.shape)) for tensor in mapping.mapped)
    assert n_parameters == 7_833_409_536
    assert 2 * n_parameters == index["metadata"]["total_size"]
    metadata = plan_metadata(RECIPE, "step35", dims)
    assert metadata["step35.block_count"].value == 37
    assert metadata["step35.rope.freq_base"].value == 640000
