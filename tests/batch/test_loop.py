"""The loop: rows in flight, their order, errors, changes under way, and what a killed run leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.batch.loop import answer_rows
from mimo_gguf.batch.open_job import Source, look_through, open_job
from mimo_gguf.batch.output import partial_path
from mimo_gguf.batch.rows import Result, Row, Run
from mimo_gguf.core.errors import BackendError, OutputError, UsageError
from tests.batch.answerers import Echo, accept, answered, names_in, opened, read_lines, request, write_rows


def source(tmp_path: Path, rows: list[dict[str, Any]], **how: Any) -> Source:
    return Source(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", **how)


def test_every_row_has_one_line_and_failures_are_lines(tmp_path: Path) -> None:
    rows = [request(str(number), f"prompt {number}", fails=number % 7 == 0) for number in range(50)]
    echo = Echo(pause=lambda row: 0.002 * (row.number % 3))
    done = answered(source(tmp_path, rows), echo)
    lines = {line["custom_id"]: line["response"] for line in read_lines(tmp_path / "out.jsonl")}
    assert len(lines) == 50 and echo.most == 4
    for row in rows:
        status = lines[row["custom_id"]]["status_code"]
        assert status == (400 if row["body"]["fails"] else 200)
        assert status == 400 or lines[row["custom_id"]]["body"]["text"] == row["body"]["prompt"]
    assert (done.n_rows, done.n_done, done.n_failed, done.n_generated) == (50, 50, 8, 42 * 3)
    assert done.left_s == 0 and done.acceptance is None


def test_a_common_beginning_is_answered_together(tmp_path: Path) -> None:
    rows = [request(f"{part}{number}", f"{'abc'[part]} {number}") for number in range(20) for part in range(3)]
    echo = Echo(n_in_flight=1)
    answered(source(tmp_path, rows), echo)
    beginnings = "".join(row.body["prompt"][0] for row in echo.rows)
    assert beginnings == "a" * 20 + "b" * 20 + "c" * 20


class Killed(Exception):
    """Stands for the end of the process."""


def test_it_goes_on_wherever_it_was_stopped(tmp_path: Path) -> None:
    rows = [request(str(number)) for number in range(30)]
    given = source(tmp_path, rows)

    class Dying(Echo):
        async def answer(self, row: Row) -> Result:
            if len(self.rows) == 11:
                raise Killed
            return await Echo.answer(self, row)

    asked: list[str] = []
    for _ in range(2):
        dying = Dying()
        with pytest.raises(Killed):
            answered(given, dying)
        asked += [row.custom_id for row in dying.rows]
        assert not (tmp_path / "out.jsonl").exists()
        with partial_path(tmp_path / "out.jsonl").open("ab") as file:
            file.write(b'{"id":"batch_req_123')
    last = Echo()
    done = answered(given, last)
    lines = read_lines(tmp_path / "out.jsonl")
    assert sorted(line["custom_id"] for line in lines) == sorted(row["custom_id"] for row in rows)
    assert done.n_earlier == 30 - len(last.rows) and done.n_done == 30
    assert len(asked) + len(last.rows) <= 30 + 2 * 4  # only what was in flight is answered twice
    again = Echo()
    assert answered(given, again).n_done == 30 and not again.rows


def test_rows_that_are_added_later_are_answered_too(tmp_path: Path) -> None:
    rows = [request(str(number)) for number in range(5)]
    answered(source(tmp_path, rows))
    echo = Echo()
    answered(source(tmp_path, [*reversed(rows), request("new")]), echo)
    assert [row.custom_id for row in echo.rows] == ["new"]
    assert len(read_lines(tmp_path / "out.jsonl")) == 6


def test_a_row_that_changed_is_noticed(tmp_path: Path) -> None:
    rows = [request(str(number)) for number in range(5)]
    answered(source(tmp_path, rows))
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UsageError, match="line 4: the row '3' has changed"):
        answered(source(tmp_path, [*rows[:3], request("3", "other"), rows[4]]))
    with pytest.raises(UsageError, match="2 of the answered rows are not in the input"):
        answered(source(tmp_path, rows[:3]))
    with pytest.raises(OutputError, match="another model"):
        answered(source(tmp_path, rows), Echo(fingerprint="other"))
    assert (tmp_path / "out.jsonl").read_bytes() == before
    answered(source(tmp_path, rows[:3], force=True))
    assert len(read_lines(tmp_path / "out.jsonl")) == 3


def test_an_input_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    given = source(tmp_path, [request(str(number)) for number in range(1500)])
    echo = Echo()
    job = opened(given, echo)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(json.dumps(request("new")) + "\n")
    with pytest.raises(UsageError, match="has changed while"):
        asyncio.run(answer_rows(job, echo))
    job.close()
    assert answered(given).n_done == 1501


def test_errors_are_answered_again_if_that_is_wished(tmp_path: Path) -> None:
    rows = [request(str(number), fails=number < 2) for number in range(6)]
    answered(source(tmp_path, rows))

    class Better(Echo):
        async def answer(self, row: Row) -> Result:
            self.rows.append(row)
            return Result(200, {})

    better = Better()
    assert answered(source(tmp_path, rows), better).n_failed == 2 and not better.rows
    done = answered(source(tmp_path, rows, retry_errors=True), better)
    assert {row.custom_id for row in better.rows} == {"0", "1"} and done.n_failed == 0
    assert [line["response"]["status_code"] for line in read_lines(tmp_path / "out.jsonl")] == [200] * 6


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "has no rows"),
        (["nonsense"], "line 1: not JSON"),
        ([request("a"), "{}", request("b")], "line 2: custom_id"),
        ([request("a"), request("b"), request("a", "y")], "line 3: the custom_id 'a' is that of line 1"),
        (["x"] * 9, "and 6 more"),
    ],
)
def test_lines_that_cannot_be_answered_are_named_at_the_start(tmp_path: Path, lines: list[Any], words: str) -> None:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "in.jsonl").write_text("\n".join(text))
    echo = Echo()
    with pytest.raises(UsageError, match=words):
        answered(Source(tmp_path / "in.jsonl", tmp_path / "out.jsonl"), echo)
    assert not echo.rows and names_in(tmp_path) == ["in.jsonl"]


def test_if_every_row_would_be_refused_nothing_begins(tmp_path: Path) -> None:
    def refuse(row: Row) -> Result | None:
        failure = {"message": "no such model", "code": "model_not_found"}
        return Result(404, {"error": failure}) if row.body["model"] != "ours" else None

    given = source(tmp_path, [request("a", model="x"), request("b", model="y")])
    with pytest.raises(UsageError, match="no row can be answered; line 1: no such model") as error:
        open_job(given, Run(""), refuse)
    assert "--alias" in str(error.value.hint)
    given = source(tmp_path, [request("a", model="x"), request("b", model="ours", max_tokens=10)])
    found, earlier = look_through(given, Run(""), refuse)
    assert found is not None
    assert (found.n_rows, found.n_refused, found.longest, len(earlier.answered)) == (2, 1, None, 0)
    given = source(tmp_path, [request("b", "é" * 50, model="ours", max_tokens=10)])
    found, _ = look_through(given, Run(""), refuse)
    assert found is not None and found.longest == found.longest_prompt + 10 and 100 < found.longest_prompt < 200


def test_what_ends_the_answerer_ends_the_batch_at_once(tmp_path: Path) -> None:
    class Gone(Echo):
        async def answer(self, row: Row) -> Result:
            if row.custom_id == "1":
                raise BackendError("the GPU is gone")
            await asyncio.sleep(30)
            return Result(200, {})

    began = time.monotonic()
    with pytest.raises(BackendError, match="GPU is gone"):
        answered(source(tmp_path, [request(str(number)) for number in range(3)]), Gone())
    assert time.monotonic() - began < 5
    assert names_in(tmp_path) == ["in.jsonl"]


def test_a_silent_pipe_can_be_left(tmp_path: Path) -> None:
    """The rows of a pipe are answered as they come, and nobody waits for it at the end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    into: list[int] = []
    opening = threading.Thread(target=lambda: into.append(os.open(fifo, os.O_WRONLY)))
    opening.start()
    echo = Echo()
    job = opened(Source(fifo, tmp_path / "out.jsonl"), echo)
    opening.join()

    async def leave() -> None:
        work = asyncio.create_task(answer_rows(job, echo))
        os.write(into[0], (json.dumps(request("a")) + "\n" + "nonsense\n" + json.dumps(request("a")) + "\n").encode())
        while job.progress.n_done < 3:
            await asyncio.sleep(0.005)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    asyncio.run(leave())
    os.close(into[0])
    lines = read_lines(partial_path(tmp_path / "out.jsonl"))
    assert [line["custom_id"] for line in lines].count("a") == 1
    assert sorted(line["error"]["code"] for line in lines if line["error"]) == [
        "duplicate_custom_id", "invalid_json_line",
    ]  # fmt: skip
    assert (job.progress.n_done, job.progress.n_failed) == (3, 2)
    job.close()


CHILD = """
    import asyncio, sys
    from pathlib import Path
    from mimo_gguf.batch.open_job import Source
    from tests.batch.answerers import Echo, answered
    answered(Source(Path("in.jsonl"), Path("out.jsonl")), Echo(pause=lambda row: 0.003))
"""


def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    rows = [request(str(number)) for number in range(300)]
    given = source(tmp_path, rows)
    partial = partial_path(tmp_path / "out.jsonl")
    for n in (1, 60, 170):
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD)], cwd=tmp_path, env=environment) as child:
            while not partial.exists() or partial.read_bytes().count(b"\n") < n:
                assert child.poll() is None
                time.sleep(0.002)
            child.send_signal(signal.SIGKILL)
        assert not (tmp_path / "out.jsonl").exists()
    before = len(read_lines(partial)) if partial.read_bytes().endswith(b"\n") else 170
    echo = Echo()
    answered(given, echo)
    lines = read_lines(tmp_path / "out.jsonl")
    assert sorted(line["custom_id"] for line in lines) == sorted(row["custom_id"] for row in rows)
    assert {line["custom_id"]: line["response"]["body"]["seed"] for line in lines} == {
        row["custom_id"]: Row(1, row["custom_id"], "", "", {}).seed for row in rows
    }
    assert len(echo.rows) <= 300 - before


def test_nothing_is_refused_by_default() -> None:
    assert accept(Row(1, "a", "POST", "/", {})) is None
