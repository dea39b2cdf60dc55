"""With an importance matrix of ours the MTP layer can have any type, and the trunk has llama-imatrix's figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import mimo_gguf
from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.importance_file import read_importance_sums
from mimo_gguf.llama.api import load_model
from mimo_gguf.llama.checkpoint_vocabulary import vocabulary_of
from mimo_gguf.quantization.importance import read_importance
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from tests.quality.imatrix.runs import measure
from tests.reference import MIMO_TINY


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny trained model, block by block, on its held-out text."""
    path = tmp_path_factory.mktemp("tiny") / "imatrix.gguf"
    measure(MIMO_TINY, held_out_windows(4, 64), path)
    return path


def held_out_windows(n: int, n_ctx: int) -> list[NDArray[np.int32]]:
    lines = MIMO_TINY.with_name("mimo-tiny-heldout.jsonl").read_text(encoding="utf-8").splitlines()
    text = "\n".join(message["content"] for line in lines for message in json.loads(line)["messages"])
    with open_model(str(MIMO_TINY)) as source:
        tokens = vocabulary_of(source).tokenize(text)
    return list(np.array(tokens[: n * n_ctx], np.int32).reshape(n, n_ctx))


def test_the_mtp_layer_can_have_any_type(matrix: Path, tmp_path: Path) -> None:
    """Without entries its matrices became Q4_K, with a note."""
    report = mimo_gguf.quantize(
        MIMO_TINY, types="F16", mtp_type="IQ2_XXS", imatrix=matrix, out=tmp_path / "tiny.gguf", threads=1
    )
    assert report.outputs[0].notes == ()
    types = {info.name: info.ggml_type.name for info in read_gguf(tmp_path / "tiny.gguf").infos()}
    of_mtp = [kind for name, kind in types.items() if name.startswith("blk.3.") and kind != "F32"]
    assert of_mtp == ["IQ2_XXS"] * 8
    with load_model(tmp_path / "tiny.gguf") as model:
        assert model.n_mtp == 1


def test_nothing_is_missing_in_a_matrix_of_ours(matrix: Path, tmp_path: Path) -> None:
    request = OutputRequest(load_profile("Q4_K_M"), tmp_path / "tiny.gguf")
    with open_model(str(MIMO_TINY)) as source:
        plan = plan_quantization(source, [request], QuantizeOptions(importance=read_importance(matrix)))
    assert plan.outputs[0].notes == ()


def test_it_has_llama_imatrixs_entries_and_those_it_lacks(matrix: Path) -> None:
    ours = read_importance_sums(matrix)
    theirs = read_importance_sums(Path(__file__).parents[2] / "quantization" / "data" / "mimo-tiny.imatrix-gguf")
    assert theirs.sums.keys() <= ours.sums.keys()
    more = ours.sums.keys() - theirs.sums.keys()
    assert more == {"output.weight", *(name for name in ours.sums if name.startswith("blk.3."))}
    for name in theirs.sums:
        assert ours.sums[name].shape == theirs.sums[name].shape
