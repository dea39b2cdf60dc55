"""MiMo-VL and MiMo-Embodied: the text model inside Qwen2.5-VL's class becomes a GGUF, the vision tower is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from mimo_gguf.chat.template import ChatTemplate
from mimo_gguf.conversion.checkpoint import read_checkpoint
from mimo_gguf.conversion.checkpoint_source import ConversionOptions, ConversionPlan, plan_conversion
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.core.gguf_file import read_gguf
from tests.checkpoints import CONFIG, tensor_shapes, write_checkpoint, write_hollow, write_tokenizer
from tests.cli.command_line import run_here
from tests.conversion.relatives import (
    FULL_VISION,
    NAMES,
    TINY_VISION,
    flat_config,
    in_memory_name,
    nested_config,
    relative_shapes,
    vision_shapes,
)
from tests.conversion.test_conservation import expected_names, widened

VISION = vision_shapes(TINY_VISION)
CONFIGS: dict[str, Callable[..., dict[str, Any]]] = {"flat": flat_config, "nested": nested_config}
# The constructs of Qwen2.5-VL's template: counters, and content that is a text or a list of parts.
PROCESSOR_TEMPLATE = (
    "{% set pictures = namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != "
    "'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] "
    "}}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}{% for part in message["
    "'content'] %}{% if part['type'] == 'image' or 'image' in part %}{% set pictures.value = pictures.value + 1 %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def planned(folder: Path, model_id: str | None = None) -> ConversionPlan:
    return plan_conversion(read_checkpoint(folder, model_id=model_id), ConversionOptions())


def values(plan: ConversionPlan) -> dict[str, Any]:
    return {key: entry.value for key, entry in plan.metadata.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", CONFIGS)
def test_published_relatives(tmp_path: Path, name: str, config: str) -> None:
    """Every key of config.json is known, whichever transformers wrote it; the text model's numbers are used."""
    write_checkpoint(tmp_path / name, config=CONFIGS[config](), shapes=relative_shapes())
    plan = planned(tmp_path / name, f"XiaomiMiMo/{name}")
    metadata = values(plan)
    assert (plan.layout, plan.n_mtp, metadata["general.architecture"]) == ("qwen2", 0, "qwen2")
    assert plan.notes == ("left out: the vision tower: the GGUF is the text model alone, and sees no images or videos",)
    assert metadata["qwen2.rope.freq_base"] == 640000
    assert metadata["qwen2.attention.key_length"] == metadata["qwen2.rope.dimension_count"] == 16
    assert metadata["qwen2.embedding_length"] == 64
    assert metadata["general.name"] == name.replace("-", " ")
    assert metadata["general.source.repo_url"] == f"https://huggingface.co/XiaomiMiMo/{name}"


@pytest.mark.parametrize("naming", ["as published", "in memory"])
def test_every_bit_of_the_text_model_arrives(tmp_path: Path, naming: str) -> None:
    """Source tensors = written tensors + the vision tower, which has a type of its own in MiMo-Embodied-7B."""
    rename = in_memory_name if naming == "in memory" else str
    shapes = {rename(name): shape for name, shape in relative_shapes().items()}
    dtypes = {rename(name): "F32" for name in VISION}
    data = write_checkpoint(tmp_path / "MiMo-VL", config=flat_config(), shapes=shapes, dtypes=dtypes)
    done = run_here(tmp_path, "convert", "MiMo-VL", "--type", "BF16")
    assert done.returncode == 0, done.stderr
    assert f"{len(VISION)} tensors: the vision tower: the GGUF is the text model alone" in done.stdout
    written = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "MiMo-VL-BF16.gguf").tensors}
    names = {gguf: rename(hf) for gguf, hf in expected_names(CONFIG["num_hidden_layers"], 0).items()}
    assert written.keys() == names.keys()
    assert {*names.values(), *map(rename, VISION)} == data.keys()
    for gguf, hf in names.items():
        raw = widened(data[hf], "BF16").tobytes() if gguf.endswith(".bias") or "norm" in gguf else data[hf]
        assert written[gguf].data.tobytes() == raw, gguf
    stated = planned(tmp_path / "MiMo-VL").as_json()
    assert {entry["from"] for entry in stated["mapped"] + stated["dropped"]} == data.keys(), "names as they are stored"


def test_full_size(tmp_path: Path) -> None:
    """The published geometry from headers alone: the trunk is that of MiMo-7B, and 8.3 G parameters in all."""
    trunk = CONFIG | {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151680, "max_position_embeddings": 128000,
    }  # fmt: skip
    shapes = relative_shapes(trunk, FULL_VISION)
    config = flat_config(trunk, FULL_VISION)
    assert config["rope_scaling"]["mrope_section"] == [16, 24, 24]
    weight_map = {name: f"model-{1 + n * 4 // len(shapes):05d}-of-00004.safetensors" for n, name in enumerate(shapes)}
    write_hollow(tmp_path / "MiMo-VL-7B-RL", config, weight_map, shapes)
    write_tokenizer(tmp_path / "MiMo-VL-7B-RL")
    plan = planned(tmp_path / "MiMo-VL-7B-RL")
    n_text = sum(int(np.prod(tensor.shape)) for tensor in plan.mapping.mapped)
    n_vision = sum(int(np.prod(shapes[tensor.hf])) for tensor in plan.dropped)
    assert (len(plan.mapping.mapped), n_text) == (435, 7_622_619_136)
    assert (len(plan.dropped), n_vision) == (390, 679_172_096)
    assert values(plan)["qwen2.context_length"] == 128000


# ---- what a config.json may say


def test_rotation_of_older_files(tmp_path: Path) -> None:
    rope = flat_config()["rope_scaling"] | {"rope_type": "mrope", "type": "mrope"}
    write_checkpoint(tmp_path, config=flat_config() | {"rope_scaling": rope}, shapes=relative_shapes())
    assert values(planned(tmp_path))["qwen2.rope.freq_base"] == 640000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "only plain rotary positions"),
        ({"rope_scaling": {"mrope_section": [2, 3, 3], "factor": 4.0}}, "only plain rotary positions"),
        ({"use_sliding_window": True}, "use_sliding_window = true"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
@pytest.mark.parametrize("place", ["flat", "nested"])
def test_other_arithmetic_is_refused(tmp_path: Path, changes: dict[str, Any], message: str, place: str) -> None:
    config = flat_config() | changes
    if place == "nested":
        config = nested_config()
        config["text_config"] |= changes
    write_checkpoint(tmp_path, config=config, shapes=relative_shapes())
    with pytest.raises(CheckpointError, match=message):
        planned(tmp_path)


def test_sections_of_the_rotation_are_known_inside_a_larger_model_only(tmp_path: Path) -> None:
    config = CONFIG | {"rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default"}}
    write_checkpoint(tmp_path, config=config)
    with pytest.raises(CheckpointError, match="mrope_section"):
        planned(tmp_path)


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_a_tied_output_matrix_is_stated_in_two_places(tmp_path: Path, outer: bool, inner: bool) -> None:
    config = nested_config() | {"tie_word_embeddings": outer}
    config["text_config"]["tie_word_embeddings"] = inner
    shapes = {name: shape for name, shape in relative_shapes().items() if name != "lm_head.weight"}
    write_checkpoint(tmp_path, config=config, shapes=shapes)
    if outer or inner:
        assert "output.weight" not in {tensor.gguf for tensor in planned(tmp_path).mapping.mapped}
    else:
        with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
            planned(tmp_path)


def test_a_text_config_that_is_not_a_table(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, config=flat_config() | {"text_config": [1]}, shapes=relative_shapes())
    with pytest.raises(CheckpointError, match="text_config"):
        planned(tmp_path)


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    further = {"model.language_model.norm.weight": (CONFIG["hidden_size"],)}
    write_checkpoint(tmp_path, config=flat_config(), shapes=relative_shapes() | further)
    with pytest.raises(CheckpointError, match=r"stored under two names: model\..*norm\.weight"):
        planned(tmp_path)


def test_missing_and_unknown_tensors_are_told(tmp_path: Path) -> None:
    shapes = relative_shapes() | {"audio_tower.conv1.weight": (4, 4)}
    del shapes["model.layers.1.mlp.up_proj.weight"]
    write_checkpoint(tmp_path, config=flat_config(), shapes=shapes)
    with pytest.raises(CheckpointError, match=r"mlp\.up_proj\.weight.*no place for 1 tensor: audio_tower"):
        planned(tmp_path)


def test_mimo_itself_has_no_vision_tower(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shapes=tensor_shapes(CONFIG) | VISION)
    with pytest.raises(CheckpointError, match="no place for"):
        planned(tmp_path)


# ---- the chat template


@pytest.mark.parametrize("tokenizer_has", ["another", "the same", "none"])
def test_the_template_is_the_processors(tmp_path: Path, tokenizer_has: str) -> None:
    write_checkpoint(tmp_path, config=flat_config(), shapes=relative_shapes())
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": PROCESSOR_TEMPLATE}))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if tokenizer_has != "another":
        settings["chat_template"] = PROCESSOR_TEMPLATE if tokenizer_has == "the same" else None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    plan = planned(tmp_path)
    assert values(plan)["tokenizer.chat_template"] == PROCESSOR_TEMPLATE
    assert any("another template" in note for note in plan.notes) == (tokenizer_has == "another")


def test_the_template_renders_text_as_a_processor_does() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": "Hello /no_think"}]
    for conversation in (messages, [{"role": "system", "content": ""}, *messages]):
        ours = ChatTemplate(PROCESSOR_TEMPLATE).render(conversation)
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in conversation]
        (theirs,), _ = render_jinja_template([parts], chat_template=PROCESSOR_TEMPLATE, add_generation_prompt=True)
        assert ours == theirs


# ---- the arithmetic


@pytest.fixture(scope="module")
def by_transformers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], np.ndarray]:
    """A random model in float32, saved by transformers; tokens, and its logits for them, float32 [T, vocab]."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("by-transformers") / "MiMo-VL"
    config = Qwen2_5_VLConfig(**json.loads(json.dumps(flat_config() | {"torch_dtype": "float32"})))
    model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            scale = 0.5 if weights.dim() == 1 else weights.shape[-1] ** -0.5
            scale *= 3 if name == "lm_head.weight" else 1
            offset = 1.0 if "norm" in name else 0.0
            weights.copy_(torch.randn(weights.shape, generator=generator) * scale + offset)
        tokens = torch.randint(0, CONFIG["vocab_size"], (1, 40), generator=generator)
        logits = model(input_ids=tokens).logits[0].numpy()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder, tokens[0].tolist(), logits


def test_logits_equal_those_of_transformers(
    by_transformers: tuple[Path, list[int], np.ndarray], tmp_path: Path
) -> None:
    """Text alone: the three positions of each token are the same, so llama.cpp's plain rotation is right."""
    from mimo_gguf import convert
    from mimo_gguf.llama.api import ContextOptions, load_model, open_context
    from mimo_gguf.llama.batch import Batch

    folder, tokens, wanted = by_transformers
    path = tmp_path / "model.gguf"
    convert(folder, out=path, types="F32")
    assert read_gguf(path).architecture == "qwen2"
    n = len(tokens)
    options = ContextOptions(
        n_ctx=256, n_batch=64, n_ubatch=64, n_outputs_max=n, n_threads=1, flash_attn=False, type_k=0, type_v=0
    )
    with load_model(path) as model, open_context(model, options) as context:
        assert context.decode(Batch(n).fill(tokens, 0, n_outputs=n)) == 0
        got = np.stack([context.logits(row) for row in range(n)])
    assert 1.5 < wanted.std() < 8
    assert np.abs(got - wanted).max() < 1e-4
