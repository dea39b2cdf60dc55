"""The tables about graphics cards are those of the kept results, and results become tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import documents, record
from benchmarks.gpu.child import rows_of_child
from benchmarks.gpu.marked_tests import run_tests, summary
from benchmarks.gpu.memory import CELLS
from benchmarks.gpu.record import Recorder, Row, card_file, read_rows
from benchmarks.gpu.speed import judge_drafts

CARD = "NVIDIA GeForce RTX 3060"


def test_documents_and_catalogue_are_what_the_results_say() -> None:
    assert documents.differing() == [], "run: python -m benchmarks.gpu.documents"


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    out = Recorder.beginning(card_file(CARD))
    assert out.path == tmp_path / "nvidia-geforce-rtx-3060.jsonl"
    out.write({"step": "there", "date": "2026-11-28"})
    for n_ctx, used in ((8192, 900 << 20), (32768, 1100 << 20)):
        cell = {name: getattr(CELLS[0], name) for name in CELLS[0].__slots__} | {"n_ctx": n_ctx}
        out.write(
            {
                "step": "memory", "device": CARD, "cell": cell, "counted": 800 << 20, "used": {"answer": used},
                "difference": used - (800 << 20),
            }
        )  # fmt: skip
    out.write({"step": "memory", "failed": 1, "said": "out of memory"})
    out.write({"step": "speed", "what": "plain", "device": CARD, "tok_s": 55.5, "share": 0.7312})
    way = {"step": "speed", "what": "generation", "together": 1, "as_it_comes": False, "drafts": 1}
    out.write(way | {"acceptance": 0.75, "tok_s": 80.1})
    with out.path.open("a") as file:
        file.write('{"step": "speed", "what": "prom')  # killed in the middle of a line
    return out.path


def test_memory_rows_begin_with_the_largest_difference(measured: Path) -> None:
    first, second = documents.memory_table().splitlines()[2:]
    assert first == f"| {CARD} | all | 32768 | f16 | on | 512 | 800.0 | 1100.0 | 300.0 |"
    assert second.endswith("| 900.0 | 100.0 |")


def test_a_speed_that_was_not_measured_is_not_invented(measured: Path) -> None:
    (line,) = documents.speed_table().splitlines()[2:]
    assert line.startswith(f"| {CARD} | 55.5 | 73% | - / 80.1 / - |")
    assert documents.shares_csv() == f"description,share,date\n{CARD},0.73,2026-11-28\n"


def test_a_step_that_was_run_again_stands_for_itself(measured: Path) -> None:
    out = Recorder.beginning(measured, keep=True)
    out.write({"step": "speed", "what": "plain", "device": CARD, "tok_s": 60.0, "share": 0.8})
    assert "| 60.0 | 80% | - / 80.1 / - |" in documents.speed_table()
    assert documents.shares_csv() == f"description,share,date\n{CARD},0.80,2026-11-28\n"


def test_a_line_that_was_cut_off_is_left_out(measured: Path) -> None:
    assert len(read_rows(measured, "speed")) == 2
    assert all("at_s" in json.loads(line) for line in measured.read_text().splitlines()[:-1])


def test_a_rehearsal_is_no_card(measured: Path) -> None:
    """Neither the tiny model nor a software GPU says anything about a card."""
    there, *others = measured.read_text().splitlines()
    measured.write_text("\n".join([json.dumps(json.loads(there) | {"rehearsal": True}), *others]))
    assert documents.memory_table() == documents.speed_table() == documents.NOTHING
    assert documents.shares_csv() == "description,share,date\n"


def test_without_results_the_documents_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    assert documents.memory_table() == documents.speed_table() == documents.NOTHING


def test_a_measurement_that_fails_is_a_row_with_its_last_words(tmp_path: Path) -> None:
    """And one that does not end in time is ended."""
    (row,) = rows_of_child("cell", tmp_path / "missing.gguf", {"n_ctx": 256})
    assert row["failed"] == 1 and "missing.gguf" in row["said"]
    assert [row["failed"] for row in rows_of_child("cell", tmp_path, {}, timeout_s=0.01)] == ["timeout"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_measurement_that_a_signal_ends_is_a_row_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import ctypes, sys\nprint('here', file=sys.stderr)\nctypes.string_at(0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (row,) = rows_of_child("cell", tmp_path / "missing.gguf", {})
    assert row["failed"] == "SIGSEGV" and "here" in row["said"] and "Fatal Python error" in row["said"]


def generation(drafts: int, acceptance: float, tok_s: float, *, free: bool = False) -> Row:
    return {"together": 1, "drafts": drafts, "acceptance": acceptance, "tok_s": tok_s, "as_it_comes": free}


def test_where_drafts_break_even() -> None:
    """One draft pays from halfway between 0 and 0.6 on, two pay at once, three never."""
    speeds = {1: (40.0, 60.0, 70.0), 2: (50.0, 55.0, 60.0), 3: (20.0, 30.0, 40.0)}
    rows = [generation(0, 0.0, 50.0), generation(1, 0.0, 47.5, free=True), generation(1, 0.9, 70.0, free=True)]
    rows += [
        generation(drafts, acceptance, tok_s)
        for drafts, values in speeds.items()
        for acceptance, tok_s in zip((0.0, 0.6, 0.75), values, strict=True)
    ]
    *drafts, worst = judge_drafts([*rows, generation(0, 0.0, 400.0) | {"together": 8}])
    assert [row["acceptance"] for row in drafts] == [pytest.approx(0.3), 0.0, None]
    assert worst == {"what": "worst beside plain, as it comes", "share": pytest.approx(0.95)}
    assert list(judge_drafts([])) == []


def test_the_tests_of_a_card_are_one_row() -> None:
    report = """<testsuites><testsuite tests="5" failures="1" errors="1" skipped="1" time="2.5">
        <testcase name="good"/><testcase name="better"/><testcase name="left out"><skipped/></testcase>
        <testcase name="bad"><failure/></testcase><testcase name="worse"><error/></testcase></testsuite></testsuites>"""
    assert summary(report) == {"tests": 5, "passed": 2, "skipped": 1, "wrong": ["bad", "worse"], "seconds": 2.5}
    assert [row["failed"] for row in run_tests(0.01)] == ["timeout"]
