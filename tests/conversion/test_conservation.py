"""The headline: nothing of a checkpoint is lost. Source tensors = written tensors + declared drops, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from mimo_gguf.conversion.checkpoint import read_checkpoint
from mimo_gguf.conversion.checkpoint_source import ConversionOptions, as_model_source, plan_conversion
from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.core.gguf_file import read_gguf
from tests.checkpoints import CONFIG, mtp_shapes, tensor_shapes, write_checkpoint, write_hollow
from tests.conversion.converted import convert
from tests.published import published_folder

TRUNK_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
MTP_NAMES = TRUNK_NAMES | {
    "token_layernorm.weight": "nextn.enorm.weight",
    "hidden_layernorm.weight": "nextn.hnorm.weight",
    "input_proj.weight": "nextn.eh_proj.weight",
    "final_layernorm.weight": "nextn.shared_head_norm.weight",
}


def expected_names(n_layers: int, n_mtp: int) -> dict[str, str]:
    """GGUF name to checkpoint name, written out apart from the recipe."""
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    for layer in range(n_layers):
        names |= {f"blk.{layer}.{gguf}": f"model.layers.{layer}.{hf}" for hf, gguf in TRUNK_NAMES.items()}
    for layer in range(n_mtp):
        block = n_layers + layer
        names |= {f"blk.{block}.{gguf}": f"model.mtp_layers.{layer}.{hf}" for hf, gguf in MTP_NAMES.items()}
    return names


def widened(raw: bytes, dtype: str) -> np.ndarray:
    """The float32 values of a checkpoint tensor."""
    if dtype == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("n_mtp", [1, 3])
def test_every_bit_arrives(tmp_path: Path, dtype: str, n_mtp: int) -> None:
    config = CONFIG | {"num_nextn_predict_layers": n_mtp}
    data = write_checkpoint(tmp_path / "model", config=config, shapes=tensor_shapes(config, n_mtp), dtype=dtype)
    out = convert(tmp_path / "model", tmp_path / "out.gguf", dtype)

    written = {tensor.name: tensor for tensor in GGUFReader(out).tensors}
    names = expected_names(CONFIG["num_hidden_layers"], n_mtp)
    assert written.keys() == names.keys()
    assert set(names.values()) == data.keys()
    for gguf, hf in names.items():
        tensor = written[gguf]
        raw = tensor.data.tobytes()
        if gguf.endswith("eh_proj.weight"):
            rows = np.frombuffer(raw, np.uint8).reshape(CONFIG["hidden_size"], -1)
            half = rows.shape[1] // 2
            raw = np.hstack([rows[:, half:], rows[:, :half]]).tobytes()
        if gguf.endswith(".bias") or "norm" in gguf:
            assert tensor.tensor_type is GGMLQuantizationType.F32
            assert raw == widened(data[hf], dtype).tobytes(), gguf
        else:
            assert tensor.tensor_type.name == dtype
            assert raw == data[hf], gguf


def test_dropped_tensors_are_declared(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    plan = plan_conversion(read_checkpoint(tmp_path / "model"), ConversionOptions(layout="qwen2"))
    dropped = {drop.hf for drop in plan.dropped}
    assert dropped == mtp_shapes(0, CONFIG).keys()
    assert all(drop.reason for drop in plan.dropped)
    assert dropped | {tensor.hf for tensor in plan.mapping.mapped} == tensor_shapes(CONFIG).keys()


def test_rows_read_in_any_portion_are_the_same(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    with open_model(str(tmp_path / "model")) as source:
        for tensor in source.tensors:
            info = tensor.info
            whole = np.empty((info.n_rows, info.row_bytes), np.uint8)
            tensor.read_rows(0, info.n_rows, whole)
            one = np.empty((1, info.row_bytes), np.uint8)
            for row in range(0, info.n_rows, 7):
                tensor.read_rows(row, row + 1, one)
                assert (one == whole[row]).all(), info.name


@pytest.mark.full_size
def test_full_size(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    published = published_folder(tmp_path_factory.mktemp("published"))
    config = json.loads((published / "config.json").read_text())
    weight_map = json.loads((published / "model.safetensors.index.json").read_text())["weight_map"]
    shapes = tensor_shapes(config)
    assert shapes.keys() == weight_map.keys()
    write_hollow(tmp_path, config, weight_map, shapes)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(published / name, tmp_path)

    plan = plan_conversion(read_checkpoint(tmp_path, model_id="XiaomiMiMo/MiMo-7B-RL"))
    source = as_model_source(plan, "test")
    names = expected_names(36, 1)
    assert {tensor.info.name for tensor in source.tensors} == names.keys()
    assert {tensor.gguf: tensor.hf for tensor in plan.mapping.mapped} == names
    assert len(source.tensors) == 451
    assert sum(tensor.info.n_elements for tensor in source.tensors) == 7_833_409_536
    assert sum(t.info.n_elements for t in source.tensors if t.info.name.startswith("blk.36.")) == 210_790_400
    assert not plan.dropped
    assert source.metadata["general.size_label"].value == "7B"
    assert source.metadata["general.basename"].value == "MiMo"
    assert source.metadata["general.finetune"].value == "RL"
    source.close()


def test_gguf_source_is_the_same_model(tmp_path: Path) -> None:
    """A GGUF opened as a source has the metadata and rows that were written."""
    write_checkpoint(tmp_path / "model")
    out = convert(tmp_path / "model", tmp_path / "out.gguf")
    with open_model(str(tmp_path / "model")) as checkpoint, open_model(str(out)) as gguf:
        assert [t.info for t in checkpoint.tensors] == [t.info for t in gguf.tensors]
        stored = {key: entry.value for key, entry in gguf.metadata.items()}
        for key, entry in checkpoint.metadata.items():
            if isinstance(entry.value, float):
                assert stored[key] == np.float32(entry.value), key
            else:
                assert stored[key] == entry.value, key
    assert read_gguf(out).metadata["general.file_type"].value == 32
