"""A file beside its original: same, rounded, of other weights, or of another model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_gguf import compare, convert
from mimo_gguf.core.errors import GgufError, WeightsError
from mimo_gguf.core.gguf_file import open_gguf
from mimo_gguf.core.model_source import Metadata, MetaValue, ModelSource
from mimo_gguf.core.progress import Job, Silence
from tests.cli.command_line import assert_clear_error, run_here
from tests.tiny_models import make_model, quantized, write_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint `hf`, its F32 file, and a Q8_0 file by llama.cpp."""
    folder = tmp_path_factory.mktemp("models")
    quantized(make_model(folder), "Q8_0")
    return folder


def edited(path: Path, out: Path, edit: Callable[[ModelSource], ModelSource]) -> Path:
    with open_gguf(path) as source:
        return write_gguf(edit(source), out)


class Seen(Silence):
    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.done: list[list[int]] = []

    def start(self, jobs: Any) -> None:
        self.jobs = list(jobs)

    def update(self, done: Any, resumed: Any) -> None:
        self.done.append(list(done))


def test_a_lossless_file_is_the_original_bit_for_bit(folder: Path) -> None:
    found = compare(folder / "model.gguf", folder / "hf")
    assert found.is_exact and not found.foreign and not found.notes
    assert found.verdict == "the original's weights, bit for bit"
    assert len(found.tensors) == 2 * 12 + 16 + 3
    assert found.mtp is not None
    for predictions in (found.trunk, found.mtp):
        assert predictions.n_tokens > 300
        assert predictions.largest == 0 and predictions.divergence.same_top.value == 1
        assert abs(predictions.divergence.kl.value) < 1e-9


def test_a_quantized_file_is_rounded(folder: Path) -> None:
    seen = Seen()
    found = compare(folder / "model-Q8_0.gguf", folder / "hf", progress=seen)
    assert found.verdict == "the original's weights, rounded to its types"
    assert 1e-6 < found.trunk.divergence.kl.value < 0.01 and found.trunk.divergence.same_top.value > 0.9
    assert 1e-3 < found.trunk.largest < 1
    assert found.mtp is not None and 1e-6 < found.mtp.divergence.kl.value < 0.01
    assert seen.done == sorted(seen.done) and seen.done[-1] == [job.n_bytes for job in seen.jobs]
    back = compare(folder / "model.gguf", folder / "model-Q8_0.gguf")
    assert back.notes == ("the original is quantized itself (Q8_0)",)
    assert back.trunk.largest == pytest.approx(found.trunk.largest, rel=1e-3)


def test_a_file_without_mtp_is_compared_without_it(folder: Path, tmp_path: Path) -> None:
    convert(folder / "hf", out=tmp_path / "trunk.gguf", types="F32", mtp=False)
    found = compare(tmp_path / "trunk.gguf", folder / "hf")
    assert found.is_exact and found.mtp is None
    assert found.notes == ("the original has 1 MTP block that the file lacks",)
    assert compare(folder / "model.gguf", tmp_path / "trunk.gguf").notes == (
        "the file has 1 MTP block that the original lacks",
    )


def test_weights_of_another_training_are_named(folder: Path, tmp_path: Path) -> None:
    found = compare(make_model(tmp_path, seed=1), folder / "hf")
    assert "token_embd.weight" in found.verdict and found.verdict.startswith("not the original's weights: ")
    assert found.trunk.divergence.kl.value > 0.5


def test_an_output_matrix_that_is_tied_to_the_embedding(tmp_path: Path) -> None:
    stored = make_model(tmp_path, n_mtp=0)

    def tie(source: ModelSource) -> ModelSource:
        embedding, rest = source.tensors[0], [t for t in source.tensors if t.info.name != "output.weight"]
        assert embedding.info.name == "token_embd.weight"
        return replace(source, tensors=tuple(rest))

    tied = edited(stored, tmp_path / "tied.gguf", tie)
    assert [error.name for error in compare(stored, tied).foreign] == ["output.weight"]
    assert compare(tied, tied).is_exact


def with_metadata(key: str, value: Callable[[MetaValue], Any]) -> Callable[[ModelSource], ModelSource]:
    def edit(source: ModelSource) -> ModelSource:
        entry = source.metadata[key]
        metadata: Metadata = {**source.metadata, key: replace(entry, value=value(entry))}
        return replace(source, metadata=metadata)

    return edit


WRONG: dict[str, tuple[Callable[[ModelSource], ModelSource], str]] = {
    "vocabulary": (
        with_metadata("tokenizer.ggml.tokens", lambda entry: [*entry.value[:7], "other", *entry.value[8:]]),
        "token 7 is 'other' in its vocabulary",
    ),
    "rope": (
        with_metadata("step35.rope.freq_base", lambda _: 1e4),
        "its rope freq base is 10000, the original's 640000",
    ),
    "bias": (
        lambda source: replace(source, tensors=tuple(t for t in source.tensors if t.info.name != "blk.1.attn_q.bias")),
        r"it lacks blk\.1\.attn_q\.bias",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_pair_is_refused(what: str, folder: Path, tmp_path: Path) -> None:
    edit, words = WRONG[what]
    wrong = edited(folder / "model.gguf", tmp_path / "wrong.gguf", edit)
    with pytest.raises(GgufError, match=rf"wrong\.gguf was not made from .*: {words}"):
        compare(wrong, folder / "hf")


def test_another_geometry_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="its number of trunk blocks is 3, the original's 2"):
        compare(make_model(tmp_path, num_hidden_layers=3), folder / "hf")


def test_weights_that_are_not_numbers_are_named(folder: Path, tmp_path: Path) -> None:
    data = (folder / "model.gguf").read_bytes()
    with open_gguf(folder / "model.gguf") as source:
        offset = next(t.offset for t in source.tensors if t.info.name == "blk.1.ffn_up.weight")
    (tmp_path / "nan.gguf").write_bytes(data[:offset] + np.float32(np.nan).tobytes() + data[offset + 4 :])
    with pytest.raises(WeightsError, match=r"nan\.gguf: tensor blk\.1\.ffn_up\.weight holds Inf or NaN"):
        compare(tmp_path / "nan.gguf", folder / "hf")
    with pytest.raises(WeightsError, match=r"nan\.gguf: tensor blk\.1\.ffn_up\.weight") as caught:
        compare(folder / "model.gguf", tmp_path / "nan.gguf")
    assert caught.value.hint == "download the original again"


# ---- the command


def test_the_command_shows_kinds_predictions_and_the_answer(folder: Path) -> None:
    shown = run_here(folder, "verify", "model-Q8_0.gguf", "--against", "hf")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines() if line]
    assert ["file", "model-Q8_0.gguf"] in rows and ["original", "hf"] in rows
    (down,) = (row for row in rows if row[0] == "ffn_down")
    assert down[1:3] == ["3", "Q8_0"] and 35 < float(down[3]) < 60
    assert next(row for row in rows if row[0] == "norms")[-4:] == ["exact", "exact", "0", "0"]
    assert "same top token" in shown.stdout and "rounded to its types" in shown.stdout
    listed = run_here(folder, "verify", "model-Q8_0.gguf", "--against", "hf", "--tensors")
    assert sum(line.startswith("blk.") for line in listed.stdout.splitlines()) == 2 * 12 + 16


def test_the_command_as_json_and_its_exit_codes(folder: Path, tmp_path: Path) -> None:
    import json

    shown = json.loads(run_here(folder, "verify", "model-Q8_0.gguf", "--against", "hf", "--json", "-q").stdout)
    assert shown["same"] and not shown["exact"]
    assert shown["trunk"]["tokens"] > 300 and 0 < shown["mtp"]["kl"] < 0.01
    assert {"name", "type", "original_type", "largest", "rms", "snr_db"} == set(shown["tensors"][0])
    shutil.copytree(folder / "hf", tmp_path / "hf")
    make_model(tmp_path / "other", seed=1)
    other = run_here(tmp_path, "verify", "other/model.gguf", "--against", "hf")
    assert other.returncode == 1 and "not the original's weights" in other.stdout
    assert_clear_error(run_here(tmp_path, "verify", "other/model.gguf", "--against", "nothing"), "nothing")
    make_model(tmp_path / "wide", hidden_size=96)
    assert_clear_error(run_here(tmp_path, "verify", "wide/model.gguf", "--against", "hf"), "embedding length is 96")
