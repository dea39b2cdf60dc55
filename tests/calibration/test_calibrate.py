"""Calibrated files of a tiny model: what is in them, that they resume, and that no matrix is worse than without."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimo_gguf.calibrated import _budget_bytes
from mimo_gguf.calibration import encode
from mimo_gguf.calibration.calibrate import CalibrationReport, run_calibration
from mimo_gguf.calibration.encode import damping_for
from mimo_gguf.calibration.encoder.encode import encode_matrix
from mimo_gguf.calibration.plan import RUN, CalibrationOptions, CalibrationPlan, CalibrationText, plan_calibration
from mimo_gguf.calibration.work import held_work
from mimo_gguf.core.errors import OutputError, UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.gguf_file import open_gguf, read_gguf
from mimo_gguf.core.model_source import ModelSource
from mimo_gguf.core.progress import Job, Silence
from mimo_gguf.core.threads import blas_threads
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.run import run_quantization
from mimo_gguf.quantization.type_choice import ImportanceGiven, choose_types
from mimo_gguf.quantization.verification import verify_gguf
from mimo_gguf.reference.model import open_reference
from tests.quantization.crash_runner import die_before_call, in_child
from tests.quantization.models import Model, write_random

# attn_output reads 128 columns, which the types of 256 do not divide
SMALL = Model(n_trunk=1, n_mtp=1, width=256, ffn=256, vocab=96, heads=2, kv_heads=1, head_dim=64)
OPTIONS = CalibrationOptions(encode=encode.EncodeOptions(passes=1, n_threads=1))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    with open_gguf(write_random(tmp_path_factory.mktemp("model") / "Small-BF16.gguf", SMALL, seed=2)) as opened:
        yield opened


def text_of(seed: int, n: int = 10) -> CalibrationText:
    rng = np.random.default_rng(seed)
    windows = [rng.integers(0, SMALL.vocab, 64).astype(np.int32) for _ in range(n)]
    return CalibrationText(tuple(windows[2:]), tuple(windows[:2]), f"{seed:064x}")


def plan(
    source: ModelSource,
    folder: Path,
    *types: str,
    options: CalibrationOptions = OPTIONS,
    seed: int = 0,
) -> CalibrationPlan:
    folder.mkdir(exist_ok=True)
    requests = [OutputRequest(load_profile(name), folder / f"{name}-calibrated.gguf") for name in types]
    return plan_calibration(source, requests, text_of(seed), options, QuantizeOptions(n_threads=1))


@pytest.fixture(scope="module")
def made(source: ModelSource, tmp_path_factory: pytest.TempPathFactory) -> CalibrationReport:
    return run_calibration(plan(source, tmp_path_factory.mktemp("out"), "Q4_K_M", "Q6_K"))


class Shown(Silence):
    """What a user would see."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.done: dict[str, list[int]] = {}
        self.notes: list[str] = []

    def start(self, jobs: Sequence[Job]) -> None:
        self.jobs += jobs

    def update(self, done: Sequence[int], resumed: Sequence[int]) -> None:
        self.done.setdefault(self.jobs[-1].name, []).append(done[0])

    def note(self, text: str) -> None:
        self.notes.append(text)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_are_whole_and_say_what_they_are(source: ModelSource, made: CalibrationReport) -> None:
    for file, name in zip(made.files, ("Q4_K_M", "Q6_K"), strict=True):
        assert verify_gguf(file.path).intact
        read = read_gguf(file.path)
        assert read.value("mimo_gguf.profile") == f"{name}-calibrated"
        assert read.value("mimo_gguf.calibration.base") == name
        assert read.value("mimo_gguf.calibration.text") == text_of(0).digest
        assert read.value("mimo_gguf.calibration.tokens") == text_of(0).n_tokens
        assert len(str(read.value("mimo_gguf.calibration.statistics"))) == 32
        assert file.profile is not None and load_profile(file.profile).file_type == load_profile(name).file_type
        types = {info.name: info.ggml_type for info in read.infos()}
        assert file.solved is not None
        assert {n: types[n] for n in file.solved.types} == file.solved.types
        assert types["output.weight"] is GgmlType.Q6_K
        norms = [info.name for info in read.infos() if "norm" in info.name]
        assert norms and all(types[norm] is GgmlType.F32 for norm in norms)
    assert not [path.name for path in made.files[0].path.parent.iterdir() if path.name.startswith(".")]


def test_no_larger_than_by_the_profile(source: ModelSource, made: CalibrationReport, tmp_path: Path) -> None:
    for file, name in zip(made.files, ("Q4_K_M", "Q6_K"), strict=True):
        request = OutputRequest(load_profile(name), tmp_path / f"{name}.gguf")
        run_quantization(plan_quantization(source, [request]))
        assert file.path.stat().st_size <= request.path.stat().st_size


def test_a_file_of_so_many_bytes_has_no_more(source: ModelSource, made: CalibrationReport) -> None:
    for file in made.files:
        n_bytes = file.path.stat().st_size
        header = n_bytes - sum(info.n_bytes for info in read_gguf(file.path).infos())
        options = replace(OPTIONS, budget_bytes=_budget_bytes(source, n_bytes, None))
        (output,) = plan(source, file.path.parent, "Q4_K_M", options=options).outputs
        assert n_bytes - 4096 < output.budget_bytes + header <= n_bytes


def test_matrices_are_better_on_held_out_text_and_never_worse(made: CalibrationReport) -> None:
    for file in made.files:
        assert len(file.outcomes) == 7 + 7 + 1 + 1  # a block, the MTP block with its eh_proj, the head
        assert all(outcome.error <= outcome.plain_error for outcome in file.outcomes)
        fed_back = [outcome for outcome in file.outcomes if outcome.method == "feedback"]
        assert len(fed_back) >= 10
        ragged = [outcome for outcome in file.outcomes if "attn_output" in outcome.tensor]
        assert {outcome.ggml_type for outcome in ragged} <= {"IQ4_NL", "Q5_0", "Q8_0"}
        assert np.mean([outcome.ratio for outcome in fed_back]) < 0.9
        assert file.solved is not None and file.solved.before is not None and file.solved.after is not None
        assert file.solved.after < file.solved.before


def test_weights_are_the_models_but_for_rounding(source: ModelSource, made: CalibrationReport) -> None:
    name = "blk.0.ffn_gate.weight"
    with open_reference(source) as model, open_reference(str(made.files[0].path)) as calibrated:
        assert np.isfinite(calibrated.weights(name)).all()
        difference = np.abs(calibrated.weights(name) - model.weights(name))
        assert 0 < difference.mean() < 0.1 * np.abs(model.weights(name)).max()
        assert np.array_equal(calibrated.vector("blk.0.ffn_norm.weight"), model.vector("blk.0.ffn_norm.weight"))


def test_a_second_call_finds_the_files_complete(source: ModelSource, made: CalibrationReport) -> None:
    folder = made.files[0].path.parent
    again = plan(source, folder, "Q4_K_M", "Q6_K")
    assert again.complete == tuple(file.path for file in made.files)
    report = run_calibration(again)
    assert all(file.written is None for file in report.files)
    other = plan(source, folder, "Q4_K_M", seed=1)
    assert other.complete == ()
    with pytest.raises(OutputError, match="exists already"):
        run_calibration(other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_run_goes_on_to_the_same_bytes(source: ModelSource, tmp_path: Path) -> None:
    run_calibration(plan(source, tmp_path / "whole", "Q4_K_M"))
    whole = tmp_path / "whole/Q4_K_M-calibrated.gguf"
    killed = tmp_path / "killed"
    for number in (3, 40, 25):

        def attempt(number: int = number) -> None:
            die_before_call(number)
            run_calibration(plan(source, killed, "Q4_K_M"))

        if in_child(attempt):
            break
    run_calibration(plan(source, killed, "Q4_K_M"))
    assert digest(killed / whole.name) == digest(whole)
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in whole.parent.iterdir())


@pytest.mark.parametrize("n_threads", [2, 3])
def test_any_number_of_threads_gives_the_same_bytes(
    n_threads: int, source: ModelSource, made: CalibrationReport, tmp_path: Path
) -> None:
    options = CalibrationOptions(encode=encode.EncodeOptions(passes=1, n_threads=n_threads))
    with blas_threads(n_threads):
        report = run_calibration(plan(source, tmp_path, "Q4_K_M", "Q6_K", options=options))
    assert [digest(file.path) for file in report.files] == [digest(file.path) for file in made.files]


def test_two_runs_do_not_share_a_folder(source: ModelSource, tmp_path: Path) -> None:
    mine = plan(source, tmp_path, "Q4_K_M")
    with held_work(mine.work), pytest.raises(OutputError, match="another run is working in it"):
        run_calibration(mine)
    assert list(tmp_path.iterdir()) == []


def test_a_kept_folder_serves_further_types(source: ModelSource, made: CalibrationReport, tmp_path: Path) -> None:
    options = replace(OPTIONS, work=tmp_path / "work")
    for name in ("Q4_K_M", "Q6_K"):
        run_calibration(plan(source, tmp_path, name, options=options))
        assert (tmp_path / "work/run.json").is_file()
    for file in made.files:
        assert digest(tmp_path / file.path.name) == digest(file.path)


def test_types_of_the_profile_can_be_kept(source: ModelSource, tmp_path: Path) -> None:
    options = replace(OPTIONS, mix="profile")
    shown = Shown()
    (file,) = run_calibration(plan(source, tmp_path, "Q4_K_M", options=options), shown).files
    (job,) = [job for job in shown.jobs if job.name == "calibrating"]
    there = shown.done["calibrating"]
    assert there == sorted(there) and there[-1] == pytest.approx(job.n_bytes, abs=len(file.outcomes))
    assert any("of plain importance encoding's error is left" in note for note in shown.notes)
    infos = [tensor.info for tensor in source.tensors]
    names = {info.name for info in infos}
    with open_reference(source) as model:
        choices = choose_types(load_profile("Q4_K_M"), model.geometry, infos, importance=ImportanceGiven(True, names))
    assert {i.name: i.ggml_type for i in read_gguf(file.path).infos()} == {
        c.info.name: c.info.ggml_type for c in choices
    }
    assert file.solved is not None and file.solved.before is None


def test_where_feedback_is_worse_plain_encoding_is_taken(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encode_matrix

    def spoiled(*args: object, **options: object) -> object:
        found = real(*args, **options)  # type: ignore[arg-type]
        found[:, 4:] = 0
        return found

    monkeypatch.setattr(encode, "encode_matrix", spoiled)
    (file,) = run_calibration(plan(source, tmp_path, "Q4_K_M", options=replace(OPTIONS, mix="profile"))).files
    assert file.n_plain == len(file.outcomes)
    assert all(outcome.ratio == 1 and outcome.damping == 0 for outcome in file.outcomes)


def test_what_cannot_be_is_refused_before_anything_is_made(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to calibrate"):
        plan(source, tmp_path, "F16")
    with pytest.raises(UsageError, match="calibration does not write IQ2_XS"):
        plan(source, tmp_path, "IQ2_XS")
    with pytest.raises(UsageError, match="for one file"):
        plan(source, tmp_path, "Q4_K_M", "Q6_K", options=replace(OPTIONS, budget_bytes=10**6))
    with pytest.raises(UsageError, match="the types decide"):
        plan(source, tmp_path, "Q4_K_M", options=replace(OPTIONS, budget_bytes=10**6, mix="profile"))
    with pytest.raises(UsageError, match="with the smallest types they need"):
        plan(source, tmp_path, "Q4_K_M", options=replace(OPTIONS, budget_bytes=10**4))


def test_few_tokens_for_wide_rows_raise_the_damping(source: ModelSource, tmp_path: Path) -> None:
    assert damping_for(20_000, 1000) == 0.1
    assert damping_for(5_000, 1000) == pytest.approx(0.2)
    assert damping_for(10, 1000) == 1.0
    assert any("few for the 256 columns" in note for note in plan(source, tmp_path, "Q4_K_M").notes)


def test_identity_is_in_the_file(made: CalibrationReport) -> None:
    assert len({read_gguf(file.path).value(RUN) for file in made.files}) == 2
