"""Geometries that llama.cpp cannot run are refused before anything is written; odd ones that it can run convert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.conversion.checkpoint_source import ConversionOptions
from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.core.errors import CheckpointError
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.runtime.model import Model
from tests.checkpoints import CONFIG, tensor_shapes, write_checkpoint
from tests.cli.command_line import assert_clear_error, run_here
from tests.tiny_models import make_model

HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64}
REFUSED: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "KV heads that do not divide": ({"num_key_value_heads": 3}, None, "4 attention heads cannot share 3 KV heads"),
    "more KV heads than heads": ({"num_key_value_heads": 8}, None, "4 attention heads cannot share 8 KV heads"),
    "an odd head": ({"head_dim": 15}, None, "rotary dimensions 15 are not even"),
    "a head of one": ({"head_dim": 1}, None, "rotary dimensions 1 are not even"),
    "an odd head in qwen2": ({"head_dim": 17, "hidden_size": 68}, "qwen2", "rotary dimensions 17 are not even"),
    "heads beside the width in qwen2": ({"head_dim": 32}, "qwen2", "cannot hold 4 heads of 32 beside a hidden size of"),
    "a context beyond the window": ({"max_position_embeddings": 1 << 21}, None, "would mask part of a context"),
    "an epsilon beyond float32": ({"rms_norm_eps": 1e-60}, None, "layer_norm_rms_epsilon is '1e-60'"),
    "a base below one": ({"rope_theta": 0.001}, None, "rope.freq_base is"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_run(tmp_path: Path, case: str) -> None:
    changes, layout, expected = REFUSED[case]
    config = CONFIG | HEADS | changes
    write_checkpoint(tmp_path, config=config, shapes=tensor_shapes(config))
    with pytest.raises(CheckpointError, match="cannot run it: ") as caught:
        open_model(str(tmp_path), ConversionOptions(layout=layout)).close()
    assert expected in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_the_way_on_is_the_layout_that_can(tmp_path: Path) -> None:
    config = CONFIG | HEADS | {"head_dim": 32}
    write_checkpoint(tmp_path / "hf", config=config, shapes=tensor_shapes(config))
    with pytest.raises(CheckpointError) as caught:
        open_model(str(tmp_path / "hf"), ConversionOptions(layout="qwen2")).close()
    assert "--layout step35" in str(caught.value.hint)
    open_model(str(tmp_path / "hf"), ConversionOptions(layout="step35")).close()


def test_nothing_is_written(tmp_path: Path) -> None:
    config = CONFIG | HEADS | {"num_key_value_heads": 3}
    write_checkpoint(tmp_path / "hf", config=config, shapes=tensor_shapes(config))
    done = run_here(tmp_path, "convert", "hf", "--type", "F16", "-o", "out.gguf")
    assert_clear_error(done, "4 attention heads cannot share 3 KV heads")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


ODD: dict[str, dict[str, Any]] = {
    "one head of two": {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2},
    "three heads of six": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6},
    "odd widths": {"hidden_size": 33, "intermediate_size": 31, "head_dim": 10},
    "one block": {"num_hidden_layers": 1, "hidden_size": 1, "intermediate_size": 1},
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_converts_and_runs(tmp_path: Path, case: str) -> None:
    """The other side of the rules: llama.cpp drafts and answers with these."""
    path = make_model(tmp_path, **ODD[case])
    with Model.load(path, n_ctx=64, options=SessionOptions(n_threads=1)) as model:
        assert model.has_mtp
        assert model.complete("he", max_tokens=2, temperature=0).tokens
