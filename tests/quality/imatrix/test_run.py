"""Importance matrices of whole models: equal to their definition, however the model is run, killed or limited."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimo_gguf.core.errors import OutputError, UsageError, WeightsError
from mimo_gguf.core.file_lock import locked_folder
from mimo_gguf.core.importance_file import read_importance_sums
from mimo_gguf.quality.imatrix.kept import kept_folder, sums_path
from mimo_gguf.quality.imatrix.run import imatrix
from mimo_gguf.reference.products import torch_products
from tests.checkpoints import CONFIG
from tests.quality.imatrix.oracle import sums_by_torch
from tests.quality.imatrix.runs import difference, measure, measured, random_windows
from tests.tiny_models import make_model, random_state, write_checkpoint_of
from tests.workers import running_worker


@pytest.fixture(scope="module")
def three_mtp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with three MTP layers, and three heads to a KV head."""
    folder = tmp_path_factory.mktemp("three")
    return make_model(folder, n_mtp=3, num_attention_heads=6, num_key_value_heads=2, head_dim=32, seed=5)


@pytest.fixture(scope="module", params=["one", "three"])
def model(request: pytest.FixtureRequest, tiny_path: Path, three_mtp: Path) -> Path:
    return tiny_path if request.param == "one" else three_mtp


@pytest.mark.parametrize("way", ["model.gguf", "hf"])
def test_the_sums_are_those_of_the_definition(model: Path, way: str, tmp_path: Path) -> None:
    windows = random_windows(3, 40)
    found = measured(model.with_name(way), windows, tmp_path / "ours.gguf")
    expected = sums_by_torch(model.with_name("hf"), windows)
    assert found.sums.keys() == expected.keys()
    for name, (sums, n_rows) in expected.items():
        assert found.counts[name].tolist() == [n_rows], name
        np.testing.assert_allclose(found.sums[name][0], sums, rtol=2e-5, atol=2e-5 * sums.mean(), err_msg=name)
    assert (found.n_chunks, found.chunk_size, found.datasets) == (3, 40, ("test",))


def test_torchs_products_on_its_cpu_device_give_the_same_sums(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_numpy = measured(tiny_path.with_name("hf"), random_windows(2, 40), tmp_path / "numpy.gguf")
    monkeypatch.setattr("mimo_gguf.reference.model.best_products", lambda: torch_products("cpu"))
    by_torch = measured(tiny_path.with_name("hf"), random_windows(2, 40), tmp_path / "torch.gguf")
    assert difference(by_torch, by_numpy) < 1e-5


def test_windows_longer_than_a_pass_are_cut_into_passes(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = random_windows(2, 40)
    whole = measured(tiny_path, windows, tmp_path / "whole.gguf")
    monkeypatch.setattr("mimo_gguf.quality.imatrix.through_llama._MOST_ROWS", 13)
    assert difference(measured(tiny_path, windows, tmp_path / "cut.gguf"), whole) < 1e-5


def test_without_mtp_and_without_the_head_the_rest_is_the_same(tiny_path: Path, tmp_path: Path) -> None:
    windows = random_windows(2, 32)
    full = measured(tiny_path, windows, tmp_path / "full.gguf")
    for way in ("model.gguf", "hf"):
        less = measured(tiny_path.with_name(way), windows, tmp_path / f"{way}.gguf", mtp=False, output=False)
        assert {name for name in full.sums if name not in less.sums} == {
            "output.weight", *(name for name in full.sums if name.startswith("blk.2.")),
        }  # fmt: skip
        for name in less.sums:
            np.testing.assert_allclose(less.sums[name], full.sums[name], rtol=1e-4)


def test_the_layout_without_mtp_gives_the_same_trunk(tiny_path: Path, tmp_path: Path) -> None:
    from mimo_gguf import convert

    windows = random_windows(2, 32)
    convert(tiny_path.with_name("hf"), out=tmp_path / "trunk.gguf", types="F32", layout="qwen2")
    trunk = measured(tmp_path / "trunk.gguf", windows, tmp_path / "a.gguf")
    full = measured(tiny_path, windows, tmp_path / "b.gguf")
    assert trunk.sums.keys() == {name for name in full.sums if not name.startswith("blk.2.")}
    for name in trunk.sums:
        np.testing.assert_allclose(trunk.sums[name], full.sums[name], rtol=1e-5, atol=1e-5 * full.sums[name].mean())


ELSEWHERE = """
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock
from mimo_gguf.hardware.rpc import add_workers
from mimo_gguf.llama.api import ggml_function
from mimo_gguf.llama.running_pass import TensorAccess
from tests.quality.imatrix.runs import measure, random_windows

access, copied = TensorAccess.of(ggml_function), []
def copy(*arguments):
    copied.append(arguments)
    access.copy(*arguments)

devices = tuple(device.pointer for device in add_workers([sys.argv[3]]))
with mock.patch.object(TensorAccess, "of", lambda _: replace(access, copy=copy)):
    measure(Path(sys.argv[1]), random_windows(3, 40), Path(sys.argv[2]), devices=devices)
assert len(copied) > 3 * 8
"""


def test_on_another_device_the_sums_are_the_same(tiny_path: Path, tmp_path: Path) -> None:
    """What its matrices read is copied back from there. A worker's device stays, so the run is a process of its own."""
    here = measured(tiny_path, random_windows(3, 40), tmp_path / "here.gguf")
    with running_worker() as endpoint:
        command = [sys.executable, "-c", ELSEWHERE, str(tiny_path), str(tmp_path / "there.gguf"), endpoint]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert difference(read_importance_sums(tmp_path / "there.gguf"), here) < 1e-5


def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes(tiny_path: Path, tmp_path: Path) -> None:
    """Killed before a file is synced, renamed, or deleted; the run that comes to its end leaves nothing else."""
    command = [sys.executable, "-m", "tests.quality.imatrix.crash_runner", str(tiny_path.parent), str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) >= 3, "number of kills of each run"
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"whole-model.gguf", "killed-model.gguf", "whole-hf", "killed-hf"}
    assert files["killed-model.gguf"] == files["whole-model.gguf"]
    assert files["killed-hf"] == files["whole-hf"]


def test_blocks_that_are_done_are_not_done_again(tiny_path: Path, tmp_path: Path) -> None:
    src, windows, seen = tiny_path.with_name("hf"), random_windows(2, 24), list[Any]()

    def stop(done: int, total: int) -> None:
        if done > 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(src, windows, tmp_path / "ours.gguf", stop)
    measure(src, windows, tmp_path / "ours.gguf", lambda done, total: seen.append((done, total)))
    assert seen[0] == (48, 144)


def test_an_interrupted_runs_report_counts_only_what_it_did_itself(tiny_path: Path, tmp_path: Path) -> None:
    src, windows = tiny_path.with_name("hf"), random_windows(2, 24)

    def stop(done: int, total: int) -> None:
        if done > 96:  # two of three blocks are done
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(src, windows, tmp_path / "ours.gguf", stop)
    report = measure(src, windows, tmp_path / "ours.gguf")
    assert report.resumed == pytest.approx(2 / 3)
    assert report.tokens_per_s * report.seconds == pytest.approx(48 / 3)
    assert report.as_json()["resumed"] == 0.6667
    assert measure(src, windows, tmp_path / "fresh.gguf").resumed == 0


def test_ctrl_c_keeps_what_is_done(tiny_path: Path, tmp_path: Path) -> None:
    windows = random_windows(4, 24)

    def stop(done: int, total: int) -> None:
        if done == 72:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tiny_path, windows, tmp_path / "ours.gguf", stop)
    report = measure(tiny_path, windows, tmp_path / "ours.gguf")
    assert report.resumed == 3 / 4
    assert report.tokens_per_s * report.seconds == pytest.approx(24)


@pytest.mark.parametrize("damage", ["other windows", "damaged"])
def test_what_is_not_of_this_run_is_not_gone_on_with(tiny_path: Path, damage: str, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    windows = random_windows(3, 24)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_path, random_windows(3, 24, seed=damage == "other windows"), tmp_path / "ours.gguf", stop)
    if damage == "damaged":
        sums_path(tmp_path / "ours.gguf").write_bytes(sums_path(tmp_path / "ours.gguf").read_bytes()[:-100])
    assert measure(tiny_path, windows, tmp_path / "ours.gguf").resumed == 0
    measure(tiny_path, windows, tmp_path / "fresh.gguf")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "fresh.gguf").read_bytes()


@pytest.mark.parametrize("way", ["model.gguf", "hf"])
def test_two_runs_do_not_share_a_folder(tiny_path: Path, way: str, tmp_path: Path) -> None:
    kept_folder(tmp_path / "ours.gguf").mkdir()
    with (
        locked_folder(kept_folder(tmp_path / "ours.gguf"), "lock"),
        pytest.raises(OutputError, match="another run is working in it"),
    ):
        measure(tiny_path.with_name(way), random_windows(1, 24), tmp_path / "ours.gguf")
    measure(tiny_path.with_name(way), random_windows(1, 24), tmp_path / "ours.gguf")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = random_state(CONFIG)
    state["model.layers.1.mlp.up_proj.weight"] *= 1e38
    path = make_model(tmp_path, state=state)
    for way in ("model.gguf", "hf"):
        with pytest.raises(WeightsError, match=r"blk\.1\.ffn_down\.weight reads values that are not finite"):
            measure(path.with_name(way), random_windows(1, 24), tmp_path / "ours.gguf")
        assert not (tmp_path / "ours.gguf").exists()


def text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("\n\n".join(f"{i}. The quick brown fox jumps over {i * i} lazy dogs." for i in range(400)))
    return path


def test_the_verb_reads_texts(tiny_path: Path, tmp_path: Path) -> None:
    out, plans = tmp_path / "ours.gguf", list[Any]()
    given: dict[str, Any] = {"texts": str(text(tmp_path)), "ctx": 64, "chunks": 5}
    report = imatrix(tiny_path, out=out, threads=1, on_plan=plans.append, **given)
    assert (report.n_windows, report.n_tokens, report.n_of_mtp, report.without) == (5, 320, 8, ())
    assert plans[0].kinds == {"text.txt": 320}
    file = read_importance_sums(out)
    assert file.datasets == (str(tmp_path / "text.txt"),)
    assert file.metadata["general.type"].value == "imatrix"
    block = imatrix(tiny_path.with_name("hf"), out=tmp_path / "block.gguf", **given)
    assert block.n_tokens == report.n_tokens
    assert difference(read_importance_sums(tmp_path / "block.gguf"), file) < 1e-2  # the cache was float16
    with pytest.raises(OutputError, match="exists already"):
        imatrix(tiny_path, out=out, **given)
    assert imatrix(tiny_path, out=out, force=True, **given | {"chunks": 1}).n_tokens == 64


def test_all_of_a_text_is_read_from_its_first_token_on(tiny_path: Path, tmp_path: Path) -> None:
    """As llama-imatrix does: consecutive windows of the whole text."""
    from mimo_gguf.llama.api import load_model
    from mimo_gguf.llama.vocabulary import Vocabulary

    plans: list[Any] = []
    imatrix(
        tiny_path, out=tmp_path / "ours.gguf", texts=[str(text(tmp_path))], ctx=32, chunks=4, all_text=True,
        on_plan=plans.append,
    )  # fmt: skip
    with load_model(tiny_path) as native:
        tokens = Vocabulary(native).tokenize(text(tmp_path).read_text())
    assert np.concatenate(plans[0].tokens).tolist() == tokens[:128]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ctx": 4096}, "--ctx 4096: the model's context has 128 tokens"),
        ({"tokens": 100, "chunks": 3}, "both --tokens and --chunks"),
        ({"chunks": 0}, "less than one token"),
        ({"tokens": 10, "ctx": 64}, "less than a window"),
        ({"texts": ["nothing-of-this-name"]}, "no such text"),
    ],
)
def test_what_cannot_be_measured_is_told(options: dict[str, Any], words: str, tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        given: dict[str, Any] = {"out": tmp_path / "ours.gguf", "texts": [str(text(tmp_path))]}
        imatrix(tiny_path, **given | options)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_mtp_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_checkpoint_of(tmp_path / "hf", {**CONFIG, "num_nextn_predict_layers": 0}, random_state(CONFIG, n_mtp=0))
    with pytest.raises(UsageError, match="has no MTP layer"):
        imatrix(tmp_path / "hf", out=tmp_path / "ours.gguf", texts=[str(text(tmp_path))], ctx=64, mtp=True)
