"""The built checkpoint of the real model: the same bytes twice, and the original's function in both layouts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.real_model.building import DOWNLOADS, build_checkpoint
from benchmarks.real_model.figures import Scorer
from benchmarks.real_model.original import WrongFile, check_digest, fetch_original, write_float
from benchmarks.real_model.widening import LAYOUTS
from mimo_gguf import convert
from tests.checkpoints import tensor_shapes

TEXT = (
    "The water cycle is the path of water from the sea to the clouds and back. When the sun warms the sea, water rises."
)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_wrong_download_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.whl"
    file.write_bytes(b"abc")
    check_digest(file, hashlib.sha256(b"abc").hexdigest())
    with pytest.raises(WrongFile, match="remove it"):
        check_digest(file, "0" * 64)


@pytest.mark.real_model
def test_two_builds_give_the_same_bytes(real_checkpoint: Path, tmp_path: Path) -> None:
    assert digests(build_checkpoint(tmp_path / "again")) == digests(real_checkpoint)


@pytest.mark.real_model
def test_the_folder_is_a_mimo_checkpoint(real_checkpoint: Path) -> None:
    config = json.loads((real_checkpoint / "config.json").read_text())
    index = json.loads((real_checkpoint / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensor_shapes(config).keys()


@pytest.mark.real_model
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_what_was_trained_it_is_the_original(layout: str, tmp_path: Path) -> None:
    """In llama.cpp, with float weights; what is left is the rounding of weights to bfloat16 and of the KV cache."""
    checkpoint = build_checkpoint(tmp_path / "bare", layout, trained=None)
    convert(checkpoint, out=tmp_path / "bare.gguf", types=["F32"])
    write_float(fetch_original(DOWNLOADS), tmp_path / "original.gguf")
    base, file = Scorer(str(tmp_path / "original.gguf")), Scorer(str(tmp_path / "bare.gguf"))
    ids = file.tokenize(TEXT)
    wanted, got = base.log_probabilities(ids), file.log_probabilities(ids)
    divergence = float((np.exp(wanted) * (wanted - got)).sum(-1).mean())
    assert divergence < 1e-3


@pytest.mark.real_model
def test_both_layouts_are_one_model(real_checkpoint: Path, tmp_path: Path) -> None:
    padded = build_checkpoint(tmp_path / "padded", "padded")
    scores = []
    for name, checkpoint in (("widened", real_checkpoint), ("padded", padded)):
        convert(checkpoint, out=tmp_path / f"{name}.gguf", types=["F32"])
        scorer = Scorer(str(tmp_path / f"{name}.gguf"))
        scores.append(scorer.log_probabilities(scorer.tokenize(TEXT)))
    divergence = float((np.exp(scores[0]) * (scores[0] - scores[1])).sum(-1).mean())
    assert divergence < 1e-3
