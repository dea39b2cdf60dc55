"""Judging files: the ways to the same figures agree, what was computed is not computed again, faults are one line."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mimo_gguf import measure_quality
from mimo_gguf.core.errors import DoesNotFit, GgufError, MimoGgufError, OutputError, UsageError, WeightsError
from mimo_gguf.core.gguf_file import open_gguf, read_gguf
from mimo_gguf.core.model_source import MetaValue
from mimo_gguf.llama.api import LlamaModel, open_context
from mimo_gguf.llama.batch import Batch
from mimo_gguf.llama.options import ContextOptions
from mimo_gguf.quality.backend import BackendReader, ReaderOptions, judged_rows, n_judged, targets_of
from mimo_gguf.quality.divergence import Summary
from mimo_gguf.quality.judge import run_quality
from mimo_gguf.quality.plan import QualityOptions, QualityPlan, plan_quality
from mimo_gguf.quality.report import ALL, BaseWay, QualityReport
from mimo_gguf.quality.work import forget_old
from mimo_gguf.reference.forward import head_logits
from mimo_gguf.reference.model import open_reference
from mimo_gguf.reference.run import run_windows
from tests.cli.command_line import run_here
from tests.quality.conftest import N_CTX
from tests.tiny_models import make_model, write_gguf


def in_all(report: QualityReport) -> Summary:
    return report.files[0].by_kind[ALL]


def kl(report: QualityReport) -> float:
    found = in_all(report).divergence
    assert found is not None
    return found.kl.value


def by_way(plan: QualityPlan, way: BaseWay) -> QualityPlan:
    assert plan.base is not None
    return replace(plan, base=replace(plan.base, way=way))


@pytest.fixture(scope="module")
def report(plan: QualityPlan, tmp_path_factory: pytest.TempPathFactory) -> QualityReport:
    return run_quality(plan, tmp_path_factory.mktemp("work"))


# ---- the figures


def test_perplexity_is_that_of_the_predictions_one_by_one(
    plan: QualityPlan, report: QualityReport, tiny_q8: LlamaModel
) -> None:
    """Read once more, token by token, with the definition written out."""
    losses = []
    with open_context(tiny_q8, ContextOptions(N_CTX, n_threads=1)) as context:
        batch = Batch(N_CTX)
        for window in plan.windows[:2]:
            context.forget(0)
            for position, token in enumerate(window.tokens[:-1].tolist()):
                assert context.decode(batch.fill([token], position, n_outputs=1)) == 0
                if position >= N_CTX // 2:
                    values = context.logits(0).astype(float).tolist()
                    total = math.fsum(math.exp(value) for value in values)
                    losses.append(math.log(total) - values[window.tokens[position + 1]])
    alone = replace(plan, base=None, windows=plan.windows[:2])
    found = run_quality(alone, Path(report.files[0].path).parent / "work-alone")
    assert in_all(found).n_tokens == len(losses) == 2 * n_judged(N_CTX)
    # passes of one row and of many are rounded differently
    assert math.log(in_all(found).perplexity.value) == pytest.approx(math.fsum(losses) / len(losses), abs=0.02)
    assert in_all(found).divergence is None


def test_a_base_has_no_divergence_from_itself(plan: QualityPlan, tiny_path: Path, tmp_path: Path) -> None:
    options = replace(plan.options, hidden=())
    same = plan_quality([tiny_path], str(tiny_path), [], options)
    found = in_all(run_quality(same, tmp_path)).divergence
    assert found is not None
    assert abs(found.kl.value) < 1e-8
    assert found.ln_ratio.value == 0
    assert found.same_top.value == 1


def test_kept_states_give_what_the_base_gives_in_step(plan: QualityPlan, report: QualityReport, tmp_path: Path) -> None:
    assert report.base is not None
    assert report.base.way == "in step"
    assert 1e-4 < kl(report) < 0.1
    for way, tolerance in (("states", 1e-5), ("block by block", 1e-4)):
        other = run_quality(by_way(plan, way), tmp_path / way)  # type: ignore[arg-type]
        assert kl(other) == pytest.approx(kl(report), abs=tolerance * 0.1)
        assert in_all(other).perplexity == in_all(report).perplexity


def test_in_float32_a_float32_file_is_what_llama_computes(plan: QualityPlan, tiny_path: Path, tmp_path: Path) -> None:
    """The trunk's predictions, and the drafts for both states."""
    options = replace(plan.options, hidden=("pre", "post"))
    exact = plan_quality([tiny_path], None, [], options)
    found = [run_quality(replace(exact, arithmetic=how), tmp_path / how) for how in ("backend", "float32")]
    first, second = map(in_all, found)
    assert math.log(first.perplexity.value) == pytest.approx(math.log(second.perplexity.value), abs=1e-3)
    assert found[0].files[0].acceptance == found[1].files[0].acceptance
    assert list(found[0].files[0].acceptance) == ["pre", "post"]


def test_drafts_are_those_of_the_mtp_block_on_the_text(plan: QualityPlan, tiny_path: Path) -> None:
    tokens = plan.windows[0].tokens
    with (
        BackendReader(tiny_path, ReaderOptions(N_CTX, ("pre", "post"), 1)) as reader,
        open_reference(tiny_path) as model,
    ):
        logits = reader.read(tokens)
        drafts = {hidden: reader.drafts(tokens, hidden) for hidden in ("pre", "post")}
        assert logits.shape == (n_judged(N_CTX), model.geometry.vocab_size)
        for hidden in ("pre", "post"):
            states = run_windows(model, [tokens], mtp=True, hidden=hidden)
            expected = head_logits(model, states.final[0])[judged_rows(N_CTX)]
            np.testing.assert_allclose(logits, expected, atol=0.02)
            # row p of the block predicts the token at p + 2, which the trunk's row p + 1 predicts
            rows = head_logits(model, states.mtp[0], mtp_block=model.n_trunk_blocks)[N_CTX // 2 - 1 : N_CTX - 2]
            assert (drafts[hidden] == rows.argmax(-1)).mean() > 0.9
        assert (drafts["pre"] != drafts["post"]).any()
        assert targets_of(tokens).tolist() == tokens[N_CTX // 2 + 1 :].tolist()


def test_kinds_are_judged_apart_and_together(tiny_q8_path: Path, tmp_path: Path) -> None:
    plan = plan_quality([tiny_q8_path], None, ["arithmetic", "python-docs"], QualityOptions(N_CTX, 6 * N_CTX))
    report = run_quality(plan, tmp_path)
    maths, docs, both = (report.files[0].by_kind[kind] for kind in ("maths", "docs", ALL))
    assert maths.n_tokens + docs.n_tokens == both.n_tokens == 6 * n_judged(N_CTX)
    mean = (math.log(maths.perplexity.value) + math.log(docs.perplexity.value)) / 2
    assert math.log(both.perplexity.value) == pytest.approx(mean)
    assert report.texts.kinds["maths"].n_windows == 3
    assert report.texts.n_left_out > 0


# ---- going on


class Interrupted:
    """Ctrl-C when so many tokens of a name are done; and a record of what was reported."""

    def __init__(self, what: str = "", at: int = 0) -> None:
        self.what = what
        self.at = at
        self.seen: list[tuple[str, int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.seen.append((what, done, total))
        if self.what and self.what in what and done >= self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("way", "what", "at"),
    [("in step", "Q8_0", 3), ("states", "base", 2), ("states", "Q8_0", 2), ("block by block", "base", 3)],
)
def test_an_interrupted_run_goes_on_where_it_stopped(
    way: BaseWay, what: str, at: int, plan: QualityPlan, report: QualityReport, tmp_path: Path
) -> None:
    planned = by_way(plan, way)
    with pytest.raises(KeyboardInterrupt):
        run_quality(planned, tmp_path, on_progress=Interrupted(what, at * N_CTX))
    again = Interrupted()
    found = run_quality(planned, tmp_path, on_progress=again)
    done = [done for name, done, _ in again.seen if what in name]
    assert min(done) >= (1 if way == "block by block" else at) * N_CTX
    assert all(total == 5 * N_CTX for _, _, total in again.seen)
    assert kl(found) == pytest.approx(kl(report), abs=1e-5)
    assert not list(tmp_path.iterdir()), "a finished run leaves nothing"


def test_in_float32_a_run_goes_on_too(plan: QualityPlan, tmp_path: Path) -> None:
    planned = by_way(replace(plan, arithmetic="float32"), "block by block")
    with pytest.raises(KeyboardInterrupt):
        run_quality(planned, tmp_path, on_progress=Interrupted("Q8_0", 2 * N_CTX))
    again = Interrupted()
    found = run_quality(planned, tmp_path, on_progress=again)
    assert not [done for name, done, total in again.seen if name == "base" and done < total]
    fresh = run_quality(planned, tmp_path / "new")
    assert kl(found) == pytest.approx(kl(fresh), abs=1e-9)
    assert fresh.files[0].n_read == 5 * N_CTX
    assert 0 < found.files[0].n_read < 5 * N_CTX, "what an earlier run has done does not count"


def test_a_kept_folder_saves_the_base_for_the_next_file(plan: QualityPlan, tiny_path: Path, tmp_path: Path) -> None:
    planned = by_way(plan, "states")
    run_quality(planned, tmp_path, keep_work=True)
    seen = Interrupted()
    run_quality(planned, tmp_path, keep_work=True, on_progress=seen)
    assert not seen.seen, "nothing had to be read"
    other = replace(planned, files=plan_quality([tiny_path], None, [], plan.options).files)
    run_quality(other, tmp_path, keep_work=True, on_progress=seen)
    assert {name for name, _, _ in seen.seen} == {tiny_path.name}


@pytest.mark.parametrize("name", ["base.states", "*.scores"])
def test_a_torn_file_of_a_killed_run_is_cut_at_the_last_whole_window(
    name: str, plan: QualityPlan, report: QualityReport, tmp_path: Path
) -> None:
    planned = by_way(plan, "states")
    with pytest.raises(KeyboardInterrupt):
        run_quality(planned, tmp_path, on_progress=Interrupted("Q8_0", 3 * N_CTX))
    (path,) = tmp_path.rglob(name)
    path.write_bytes(path.read_bytes()[:-7])
    assert kl(run_quality(planned, tmp_path)) == pytest.approx(kl(report), abs=1e-6)


def test_several_files_share_one_reading_of_the_base(tiny_path: Path, tiny_q8_path: Path, tmp_path: Path) -> None:
    options = QualityOptions(N_CTX, 4 * N_CTX, hidden=())
    plan = plan_quality([tiny_q8_path, tiny_path], str(tiny_path), ["arithmetic"], options)
    assert plan.base is not None
    assert plan.base.way == "states"
    seen = Interrupted()
    report = run_quality(plan, tmp_path, on_progress=seen)
    assert [done for name, done, _ in seen.seen if name == "base"] == [i * N_CTX for i in range(4)]
    first, second = (file.by_kind[ALL].divergence for file in report.files)
    assert first is not None
    assert second is not None
    assert abs(second.kl.value) < 1e-6 < first.kl.value


# ---- faults


def other_vocabulary(path: Path, folder: Path) -> Path:
    with open_gguf(path) as source:
        tokens = source.metadata["tokenizer.ggml.tokens"]
        swapped = MetaValue(tokens.value_type, [*tokens.value[1:], tokens.value[0]], tokens.item_type)
        return write_gguf(
            replace(source, metadata={**source.metadata, "tokenizer.ggml.tokens": swapped}), folder / "other.gguf"
        )


def with_nan(path: Path, folder: Path) -> Path:
    spoilt = folder / "nan.gguf"
    data = bytearray(path.read_bytes())
    with open_gguf(path) as source:
        offset = next(tensor.offset for tensor in source.tensors if tensor.info.name == "output_norm.weight")
    data[offset : offset + 4] = np.float32(np.nan).tobytes()
    spoilt.write_bytes(data)
    return spoilt


def test_another_vocabulary_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    other = other_vocabulary(tiny_path, tmp_path)
    for files, base in (([tiny_path, other], None), ([tiny_path], other)):
        with pytest.raises(UsageError, match=r"cannot be compared: their vocabularies have other tokens"):
            measure_quality(files, base=base, texts="arithmetic")


@pytest.mark.parametrize("arithmetic", ["backend", "float32"])
def test_predictions_that_are_nan_name_the_file(arithmetic: str, tiny_path: Path, tmp_path: Path) -> None:
    spoilt = with_nan(tiny_path, tmp_path)
    with pytest.raises(WeightsError, match=r"nan\.gguf: the file's predictions are NaN"):
        measure_quality(
            spoilt, texts="arithmetic", tokens=64, ctx=64, mtp=False, work=tmp_path / "w", arithmetic=arithmetic
        )
    with pytest.raises(WeightsError, match="the base's predictions are NaN"):
        measure_quality(
            tiny_path, base=spoilt, texts="arithmetic", tokens=64, ctx=64, mtp=False, work=tmp_path / "w",
            arithmetic=arithmetic,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"ctx": 1}, UsageError, "a window has at least 2 tokens"),
        ({"ctx": 4096}, UsageError, "a window of 4096 tokens: the model has"),
        ({"tokens": 10}, UsageError, "less than a window"),
        ({"arithmetic": "float16"}, UsageError, "'float16' is not one of its values"),
        ({"hidden": "before"}, UsageError, "'before' is not one of its values"),
        ({"texts": ["nothing.txt"]}, UsageError, "no such text, file or folder"),
        ({"base": "nothing.gguf"}, GgufError, "nothing.gguf"),
        ({"base": "nothing-at-all"}, MimoGgufError, "nothing-at-all"),
    ],
)
def test_wrong_options_are_refused(
    options: dict[str, object], error: type[Exception], words: str, tiny_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        measure_quality(tiny_path, **({"texts": "arithmetic", "ctx": 64, "work": tmp_path} | options))  # type: ignore[arg-type]


def test_mtp_that_a_file_lacks_is_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path, n_mtp=0)
    with pytest.raises(UsageError, match="has no MTP layer"):
        measure_quality(path, mtp=True)
    report = measure_quality(path, texts="arithmetic", tokens=64, ctx=64, work=tmp_path / "work")
    assert not report.files[0].acceptance


def test_a_file_that_does_not_fit_is_judged_in_float32(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimo_gguf.quality.plan._free_bytes", lambda n_gpu_layers: 1000)
    options = QualityOptions(N_CTX, N_CTX)
    plan = plan_quality([tiny_path], str(tiny_path), ["arithmetic"], options)
    assert plan.arithmetic == "float32"
    assert "do not fit into memory" in plan.notes[0]
    with pytest.raises(DoesNotFit, match="are free") as raised:
        plan_quality([tiny_path], None, ["arithmetic"], replace(options, arithmetic="backend"))
    assert raised.value.hint is not None
    assert "--arithmetic float32" in raised.value.hint


def test_a_base_is_read_in_the_way_that_memory_allows(
    tiny_path: Path, tiny_q8_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = QualityOptions(N_CTX, N_CTX)

    def way(free_bytes: int, files: Sequence[Path] = (tiny_q8_path,), base: Path = tiny_path) -> BaseWay:
        monkeypatch.setattr("mimo_gguf.quality.plan._free_bytes", lambda n_gpu_layers: free_bytes)
        found = plan_quality(files, str(base), ["arithmetic"], options).base
        assert found is not None
        return found.way

    monkeypatch.setattr("mimo_gguf.quality.plan._needed_bytes", lambda model, *_, mtp: model.file_bytes)
    both = sum(read_gguf(path).path.stat().st_size for path in (tiny_path, tiny_q8_path))
    assert way(both) == "in step"
    assert way(both, files=(tiny_q8_path, tiny_q8_path)) == "states"
    assert way(tiny_path.stat().st_size) == "states"
    assert way(tiny_q8_path.stat().st_size) == "block by block"
    assert way(both, base=tiny_path.parent / "hf") == "block by block"


# ---- the command


def test_the_command_prints_a_table_or_json(
    tiny_path: Path, tiny_q8_path: Path, text_path: Path, tmp_path: Path
) -> None:
    arguments: list[str | Path] = [
        "quality",
        tiny_q8_path,
        "--base",
        tiny_path,
        "-f",
        f"fox={text_path}",
        "-c",
        "64",
        "-n",
        "128",
        "--all-text",
    ]
    done = run_here(tmp_path, *arguments, "--work", tmp_path / "work", "--hidden", "both")
    assert done.returncode == 0, done.stderr
    for words in ("read beside the file", "fox: 128 tokens read", "what you get here", "same top", "pre drafts"):
        assert words in done.stdout, words
    found = run_here(tmp_path, *arguments, "--work", tmp_path / "work", "--hidden", "both", "--json")
    document = json.loads(found.stdout)
    assert document["files"][0]["kinds"]["all"]["divergence"]["kl"]["value"] > 0
    assert set(document["files"][0]["acceptance"]) == {"pre", "post"}
    assert document["texts"]["kinds"]["fox"]["n_judged"] == 2 * n_judged(64)
    alone = run_here(
        tmp_path, "quality", tiny_q8_path, "-f", text_path, "-c", "64", "-n", "64", "--all-text", "--no-mtp"
    )
    assert "perplexity" in alone.stdout
    assert "same top" not in alone.stdout


def test_a_damaged_file_is_one_line(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_path.read_bytes()[:5000])
    (tmp_path / "no.gguf").write_text("hello")
    for name in ("cut.gguf", "no.gguf"):
        done = run_here(tmp_path, "quality", name, "-f", "arithmetic")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {name}: ")
        assert not done.stdout


def test_a_work_folder_that_cannot_be_written_is_one_line(plan: QualityPlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as raised:
        run_quality(plan, tmp_path / "file")
    assert raised.value.hint == "choose another place: --work DIR"


def test_two_runs_of_one_text_do_not_share_a_folder(plan: QualityPlan, report: QualityReport, tmp_path: Path) -> None:
    """The first to end would remove what the other still needs."""

    def second(what: str, done: int, total: int) -> None:
        with pytest.raises(OutputError, match="another run is working in it") as raised:
            run_quality(plan, tmp_path)
        assert raised.value.hint == "wait for it, or choose another place: --work DIR"

    assert kl(run_quality(plan, tmp_path, on_progress=second)) == kl(report)
    assert not list(tmp_path.iterdir())


def test_folders_of_runs_that_nobody_went_on_with_are_deleted(tmp_path: Path) -> None:
    for name, days in (("old", 20), ("new", 3)):
        (tmp_path / name).mkdir()
        for path in (tmp_path / name / "x.scores", tmp_path / name):
            path.touch()
            os.utime(path, (time.time() - days * 86400,) * 2)
    forget_old(tmp_path)
    forget_old(tmp_path / "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
