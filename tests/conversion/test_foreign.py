"""Folders that are not checkpoints: one line that names what they are, and what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.conversion.checkpoint import read_checkpoint
from mimo_gguf.conversion.checkpoint_source import ConversionOptions, plan_conversion
from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.core.errors import CheckpointError
from tests.checkpoints import CONFIG, Shapes, mtp_shapes, tensor_shapes, write_checkpoint, write_safetensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 3809208\n"
SHAPES = tensor_shapes(CONFIG)
PROJECTION = "model.layers.0.mlp.up_proj"


def without_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()


def instead_of_weights(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        without_weights(folder)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")

    return spoil


def adapter(folder: Path) -> None:
    without_weights(folder)
    table = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", (2, 2), 16)}
    write_safetensors(folder / "adapter_model.safetensors", table, {})
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "XiaomiMiMo/MiMo-7B-RL"}))


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    (folder / "config.json").unlink()


def pointer(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(POINTER)

    return spoil


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


FOLDERS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "LoRA adapter": (adapter, "a LoRA adapter for XiaomiMiMo/MiMo-7B-RL", "merge"),
    "LoRA adapter without the base's config": (adapter_alone, "a LoRA adapter for", "merge"),
    "LoRA adapter, pickled": (instead_of_weights("adapter_model.bin"), "a LoRA adapter", "merge"),
    "GGUF": (instead_of_weights("MiMo.gguf"), "a folder of GGUF files", "mimo-gguf quantize"),
    "PyTorch": (instead_of_weights("pytorch_model-00001-of-00004.bin"), "pickled by PyTorch", "save_pretrained"),
    "PyTorch of Meta's kind": (instead_of_weights("consolidated.00.pth"), "pickled by PyTorch", "save_pretrained"),
    "ONNX": (instead_of_weights("onnx/model.onnx"), "an ONNX export", "exported from"),
    "MLX": (instead_of_weights("weights.npz"), "weights of MLX", "made from"),
    "TensorFlow": (instead_of_weights("tf_model.h5"), "TensorFlow or Flax", "save_pretrained"),
    "FSDP": (instead_of_weights("pytorch_model_fsdp_0/__0_0.distcp"), "a training run", "merge"),
    "DeepSpeed": (instead_of_weights("global_step100/mp_rank_00_model_states.pt"), "a training run", "merge"),
    "pointer instead of a shard": (
        pointer("model-00001-of-00002.safetensors"),
        "pointer of git-lfs",
        "git lfs pull",
    ),
    "pointer instead of the tokenizer": (pointer("tokenizer.json"), "pointer of git-lfs", "git lfs pull"),
    "pointer instead of the config": (pointer("config.json"), "pointer of git-lfs", "git lfs pull"),
    "pointer instead of the index": (pointer("model.safetensors.index.json"), "pointer of git-lfs", "git lfs pull"),
    "nothing at all": (
        remove_all,
        "no config.json",
        "download",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_of_another_kind(tmp_path: Path, case: str) -> None:
    write_checkpoint(tmp_path)
    spoil, what, hint = FOLDERS[case]
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=what) as caught:
        open_model(str(tmp_path))
    assert hint in str(caught.value.hint)
    assert len(caught.value.message) < 300 and "\n" not in caught.value.message


def with_tensors(**further: tuple[str, tuple[int, ...]]) -> tuple[Shapes, dict[str, str]]:
    names = {f"{PROJECTION}.{name.replace('__', '.')}": entry for name, entry in further.items()}
    return SHAPES | {n: shape for n, (_, shape) in names.items()}, {n: dtype for n, (dtype, _) in names.items()}


def renamed(prefix: str, cut: str = "") -> tuple[Shapes, dict[str, str]]:
    return {prefix + name.removeprefix(cut): shape for name, shape in SHAPES.items()}, {}


NAMES: dict[str, tuple[tuple[Shapes, dict[str, str]], str, str]] = {
    "GPTQ": (with_tensors(qweight=("F32", (2, 2)), g_idx=("F32", (2,))), "GPTQ or AWQ", "original"),
    "bitsandbytes": (with_tensors(weight__absmax=("F32", (2,))), "bitsandbytes", "original"),
    "bitsandbytes, 8 bits": (with_tensors(SCB=("F32", (2,))), "bitsandbytes", "original"),
    "FP8": (with_tensors(weight_scale_inv=("F32", (1, 1))), "FP8", "original"),
    "compressed-tensors": (with_tensors(weight_packed=("F32", (1, 1))), "compressed-tensors", "original"),
    "MLX": (with_tensors(scales=("F32", (1, 1)), biases=("F32", (1, 1))), "MLX", "original"),
    "unmerged adapter": (with_tensors(lora_A__weight=("F32", (1, 1))), "LoRA", "merge"),
    "inner model": (
        renamed("language_model."),
        r"larger one.* language_model\.model\.embed",
        "inner model",
    ),
    "inner model, new names": (renamed("model.language_model.", "model."), "inside a larger one", "inner model"),
    "parallel training": (renamed("module."), "parallel training", r"model.module"),
    "torch.compile": (renamed("_orig_mod."), r"torch\.compile", "_orig_mod"),
    "peft": (renamed("base_model.model."), "an adapter", "merge"),
    "without the head": (renamed("", "model."), "without its head", "AutoModelForCausalLM"),
}


@pytest.mark.parametrize("case", NAMES)
def test_tensors_of_another_kind(tmp_path: Path, case: str) -> None:
    (shapes, dtypes), what, hint = NAMES[case]
    write_checkpoint(tmp_path, shapes=shapes, dtypes=dtypes)
    with pytest.raises(CheckpointError, match=what) as caught:
        open_model(str(tmp_path))
    assert hint in str(caught.value.hint)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("key", ["quantization_config", "quantization", "compression_config"])
@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_quantized_by_its_config(tmp_path: Path, key: str, method: str) -> None:
    write_checkpoint(tmp_path, config=CONFIG | {key: {"quant_method": method, "bits": 8}})
    with pytest.raises(CheckpointError, match=rf"quantized already: {key} .* \({method}, 8 bits\)"):
        open_model(str(tmp_path))


def test_two_sets_of_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    write_checkpoint(tmp_path, n_shards=1)
    with pytest.raises(CheckpointError, match=r"two sets of weights: model\.safetensors, and the shards model-00001"):
        open_model(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match="two sets of weights"):
        open_model(str(tmp_path))


def test_an_adapter_left_beside_the_merged_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    open_model(str(tmp_path)).close()


def test_mtp_declared_and_lost(tmp_path: Path) -> None:
    """The way out that the hint names works: both of them."""
    trunk = {name: shape for name, shape in SHAPES.items() if "mtp_layers" not in name}
    write_checkpoint(tmp_path / "tuned", shapes=trunk)
    with pytest.raises(CheckpointError, match="declares MTP layers") as caught:
        plan_conversion(read_checkpoint(tmp_path / "tuned"))
    assert "--no-mtp" in str(caught.value.hint) and "--mtp-layers" in str(caught.value.hint)
    assert plan_conversion(read_checkpoint(tmp_path / "tuned"), ConversionOptions(mtp=False)).n_mtp == 0
    write_checkpoint(tmp_path / "base")
    options = ConversionOptions(mtp_layers=tmp_path / "base")
    assert plan_conversion(read_checkpoint(tmp_path / "tuned"), options).n_mtp == 1


def test_part_of_an_mtp_layer_lost(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in SHAPES.items() if not name.endswith("input_proj.weight")}
    write_checkpoint(tmp_path, shapes=shapes)
    with pytest.raises(CheckpointError, match=r"1 tensor missing: model\.mtp_layers\.0\.input_proj") as caught:
        open_model(str(tmp_path))
    assert "--no-mtp" in str(caught.value.hint)


def test_a_wall_of_names_is_cut(tmp_path: Path) -> None:
    few = {name: shape for name, shape in SHAPES.items() if ".mlp." not in name} | mtp_shapes(0, CONFIG)
    write_checkpoint(tmp_path, shapes=few)
    with pytest.raises(CheckpointError, match="6 tensors missing"):
        open_model(str(tmp_path))
    write_checkpoint(tmp_path / "b", shapes={name: shape for name, shape in SHAPES.items() if ".layers." not in name})
    with pytest.raises(CheckpointError, match=r"24 tensors missing: .* and 16 more"):
        open_model(str(tmp_path / "b"))


def index_of(shard: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index: dict[str, Any] = json.loads(path.read_text())
        index["weight_map"]["lm_head.weight"] = shard
        path.write_text(json.dumps(index))

    return spoil


@pytest.mark.parametrize(
    "shard",
    ["x" * 300 + ".safetensors", "../x.safetensors", "a/b.safetensors", "..\\x.safetensors", "a\0.safetensors",
     "/etc/x.safetensors", "C:\\x.safetensors", ".safetensors/..", "x\n.safetensors"],
)  # fmt: skip
def test_names_of_shards_that_are_none(tmp_path: Path, shard: str) -> None:
    write_checkpoint(tmp_path)
    index_of(shard)(tmp_path)
    with pytest.raises(CheckpointError, match="not a file name") as caught:
        open_model(str(tmp_path))
    assert len(caught.value.message) < 300 and caught.value.message.isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize(
    "name",
    ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
     "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "model.safetensors", "README.md",
     "added_tokens.json"],
)  # fmt: skip
def test_pipes_are_not_waited_for(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    if name == "added_tokens.json":
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        settings.pop("added_tokens_decoder")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    if name in ("README.md", "model.safetensors"):  # a model card is prose; shards lie beside the pipe
        open_model(str(tmp_path)).close()
        return
    with pytest.raises(CheckpointError):
        open_model(str(tmp_path))
