"""`mimo-gguf batch` as a user runs it: files, pipes, interruptions, and what is refused."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.batch.answerers import names_in, read_lines, write_rows
from tests.cli.command_line import PROGRAM, assert_clear_error, hear_interrupts, run, run_here

HOW = ("-t", "1", "--parallel", "2", "--ctx", "512")


def chat(number: int, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is {number} + 5?"}]
    body = {"messages": messages, "max_tokens": 24, "temperature": 0, **body}
    return {"custom_id": f"row {number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def texts(lines: list[dict[str, Any]]) -> dict[str, str]:
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


def test_a_file_of_rows(mimo_tiny: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [chat(1), chat(2), chat(3, model="gpt-4o"), chat(4, speed=9)])
    words = ("batch", "in.jsonl", "-o", "out.jsonl", "--model", mimo_tiny, *HOW)
    plan = run_here(tmp_path, *words, "--dry-run")
    assert plan.returncode == 0 and names_in(tmp_path) == ["in.jsonl"]
    assert "2 will fail; line 3: no model 'gpt-4o' here" in plan.stdout and "2 rows of up to 256 tokens" in plan.stdout
    assert json.loads(run_here(tmp_path, *words, "--dry-run", "--json").stdout)["n_refused"] == 2
    done = run_here(tmp_path, *words, "--json")
    figures = json.loads(done.stdout)
    assert done.returncode == 0 and (figures["n_rows"], figures["n_failed"]) == (4, 2)
    lines = {line["custom_id"]: line["response"] for line in read_lines(tmp_path / "out.jsonl")}
    assert [lines[f"row {n}"]["status_code"] for n in (1, 2, 3, 4)] == [200, 200, 404, 400]
    again = run_here(tmp_path, *words, "--retry-errors", "--alias", "gpt-4o")
    assert again.returncode == 0 and "4 of 4 rows, 1 of them failed" in again.stdout, again.stdout
    assert names_in(tmp_path) == ["in.jsonl", "out.jsonl"]


def started(folder: Path, mimo_tiny: Path, **how: Any) -> subprocess.Popen[str]:
    words = [*PROGRAM, "batch", "in.jsonl", "-o", "out.jsonl", "--model", str(mimo_tiny), *HOW]
    return subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts, **how)


def wait_for_rows(partial: Path, n: int, process: subprocess.Popen[str]) -> None:
    while not partial.exists() or partial.read_bytes().count(b"\n") < n:
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


def test_killed_and_interrupted_it_goes_on(mimo_tiny: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", [chat(number, ignore_eos=True, max_tokens=120) for number in range(24)])
    partial = tmp_path / "out.jsonl.partial"
    with started(tmp_path, mimo_tiny) as process:
        wait_for_rows(partial, 3, process)
        process.kill()
    first = partial.read_bytes()
    with started(tmp_path, mimo_tiny) as process:
        wait_for_rows(partial, first.count(b"\n") + 5, process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(20) == 130 and "Traceback" not in said
    assert "of 24 rows; the same command goes on from here" in said
    done = run_here(tmp_path, "batch", rows, "-o", "out.jsonl", "--model", mimo_tiny, *HOW)
    assert done.returncode == 0 and "answered by earlier runs" in done.stderr, done.stderr
    said_by_row = texts(read_lines(tmp_path / "out.jsonl"))
    assert len(said_by_row) == 24 and all(said_by_row.values())
    assert (tmp_path / "out.jsonl").read_bytes().startswith(first[: first.rindex(b"\n") + 1])
    assert names_in(tmp_path) == ["in.jsonl", "out.jsonl"]


def test_a_pipe(mimo_tiny: Path, tmp_path: Path) -> None:
    rows = [json.dumps(chat(1)), "nonsense", json.dumps(chat(1)), json.dumps(chat(2))]
    done = run(tmp_path, "batch", "-", "--model", mimo_tiny, *HOW, stdin="\n".join(rows))
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert sorted(line["custom_id"] or "" for line in lines) == ["", "", "row 1", "row 2"]
    assert {line["error"]["code"] for line in lines if line["error"]} == {"invalid_json_line", "duplicate_custom_id"}


def test_a_reader_that_has_enough(mimo_tiny: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [chat(number) for number in range(200)])
    words = [*PROGRAM, "batch", "in.jsonl", "--model", str(mimo_tiny), *HOW]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        json.loads(process.stdout.readline())
        process.stdout.close()
        with contextlib.suppress(ValueError):
            assert "Traceback" not in process.stderr.read()
        assert process.wait(30) == 1


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        (["nonsense"], [], "line 1: not JSON"),
        ([chat(1), chat(1)], [], "line 2: the custom_id 'row 1'"),
        ([chat(1, model="gpt-4o")], [], "no model 'gpt-4o' here"),
        ([chat(1, stream=True)], [], "stream"),
        ([chat(1)], ["--draft", "9"], "9 drafts"),
    ],
)
def test_what_is_refused(mimo_tiny: Path, tmp_path: Path, lines: list[Any], options: list[str], words: str) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "in.jsonl").write_text("\n".join(text))
    done = run_here(tmp_path, "batch", "in.jsonl", "-o", "out.jsonl", "--model", mimo_tiny, "-t", "1", *options)
    assert_clear_error(done, words, code=2)
    assert names_in(tmp_path) == ["in.jsonl"]


def test_somebody_elses_file_is_not_written_over(mimo_tiny: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", [chat(1)])
    done = run_here(tmp_path, "batch", "in.jsonl", "-o", "in.jsonl", "--model", mimo_tiny, "-t", "1")
    assert_clear_error(done, "exists already, and is not of a batch", code=1)
    assert read_lines(tmp_path / "in.jsonl") == [chat(1)]
    assert_clear_error(run_here(tmp_path, "batch", "no.jsonl", "--model", mimo_tiny), "no such file", code=2)
