"""The output: whatever is killed, torn or repeated, each row stands in it once, and what is not its own is refused."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mimo_gguf.batch.output import OutputFile, PipeOutput, open_output, partial_path, read_earlier
from mimo_gguf.batch.rows import Result, Row, Run, result_line, unanswered_line
from mimo_gguf.core.errors import OutputError
from tests.batch.answerers import names_in, read_lines

RUN = Run("a model")
ROWS = [Row(number, f"row {number}", "POST", "/v1/completions", {"n": number}) for number in range(12)]
LINES = [result_line(row, Result(200, {"text": "é" * 9}), RUN) for row in ROWS]


def names(output: OutputFile) -> set[str]:
    return {row.custom_id for row in ROWS if output.earlier.answered.get(row.name) is not None}


def test_it_takes_its_name_when_it_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    output = open_output(path, RUN)
    output.append(LINES[0])
    assert not path.exists() and partial_path(path).read_bytes() == LINES[0]
    output.finish()
    assert path.read_bytes() == LINES[0] and names_in(tmp_path) == ["out.jsonl"]


KILLS = st.tuples(st.integers(0, 9), st.integers(0, 400), st.sampled_from(["cut", "zeros", "zeros and a line's end"]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(KILLS, max_size=4))
@example(kills=[(2, 362, "zeros")])  # the first line's first 16 bytes, then zeros
@example(kills=[(1, 180, "zeros and a line's end")])
def test_killed_and_torn_anywhere_each_row_stands_once_in_the_end(
    tmp_path: Path, kills: list[tuple[int, int, str]]
) -> None:
    """A run writes some rows and is killed; a power cut takes the end, or leaves zeros; the next goes on, and so on."""
    path = Path(tempfile.mkdtemp(dir=tmp_path)) / "out.jsonl"
    partial = partial_path(path)
    for n, n_cut, how in [*kills, (len(ROWS), 0, "")]:
        there = partial.read_bytes() if partial.exists() else b""
        output = open_output(path, RUN)
        known = names(output)
        assert known == {row.custom_id for row, line in zip(ROWS, LINES, strict=True) if line in there}
        for line in [line for row, line in zip(ROWS, LINES, strict=True) if row.custom_id not in known][:n]:
            output.append(line)
        if not how:
            output.finish()
            break
        output.close()
        if partial.exists():
            n_bytes = partial.stat().st_size
            os.truncate(partial, max(n_bytes - n_cut, 0))
            if how != "cut":
                os.truncate(partial, n_bytes)
            if how.endswith("end"):
                with partial.open("ab") as file:
                    file.write(b"\n")
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(LINES)
    assert not partial.exists()


def test_a_failed_row_can_be_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    output = open_output(path, RUN)
    for line in (LINES[0], result_line(ROWS[1], Result(400, {}), RUN), unanswered_line(ROWS[2], "x", "y", RUN)):
        output.append(line)
    output.finish()
    assert read_earlier(path, RUN).n_failed == 2
    assert len(read_earlier(path, RUN, retry_errors=True).answered) == 1
    for how in ({}, {"retry_errors": True}):
        output = open_output(path, RUN, **how)
        output.close()
        assert len(path.read_bytes().splitlines()) == 3 and names_in(tmp_path) == ["out.jsonl"]
    output = open_output(path, RUN, retry_errors=True)
    assert names(output) == {"row 0"}
    output.append(LINES[1])
    assert len(path.read_bytes().splitlines()) == 3  # the finished file stays until there is a better one
    output.append(LINES[2])
    output.finish()
    assert path.read_bytes() == b"".join(LINES[:3])


def test_a_finished_file_to_which_nothing_is_added_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(LINES[0])
    before = path.stat()
    open_output(path, RUN).finish()
    assert path.stat().st_ino == before.st_ino and names_in(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize(
    "content", [b"precious\n", b'{"custom_id": "a"}\n', b"\x89PNG\r\n", b'{"id":"batch_re\n', b"\0\0\0\x18ftyp\n"]
)
def test_somebody_elses_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    for find in (open_output, read_earlier):
        with pytest.raises(OutputError, match="not of a batch"):
            find(path, RUN)
    assert path.read_bytes() == content
    output = open_output(path, RUN, force=True)
    output.append(LINES[0])
    assert path.read_bytes() == content
    output.finish()
    assert path.read_bytes() == LINES[0]


def test_answers_of_two_models_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    partial_path(path).write_bytes(LINES[0])
    with pytest.raises(OutputError, match="another model"):
        open_output(path, Run("another model"))
    assert partial_path(path).read_bytes() == LINES[0]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    output = open_output(path, RUN)
    with pytest.raises(OutputError, match="another run"):
        open_output(path, RUN)
    output.append(LINES[0])
    with pytest.raises(OutputError, match="another run"):
        open_output(path, RUN)
    output.close()
    output = open_output(path, RUN)
    os.truncate(partial_path(path), len(LINES[0]) - 1)
    output.close()
    output = open_output(path, RUN)
    output.append(LINES[1])  # the torn line is left out: another file, and its lock
    with pytest.raises(OutputError, match="another run"):
        open_output(path, RUN)
    output.close()


def test_a_full_disk_is_an_error_of_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    fd = os.open(full, os.O_WRONLY)
    output = OutputFile(Path("out.jsonl"), fd, None)
    output._has_begun = True
    with pytest.raises(OutputError, match="No space"):
        output.append(b"line\n")


def test_a_removed_file_is_noticed(tmp_path: Path) -> None:
    output = open_output(tmp_path / "out.jsonl", RUN)
    output.append(LINES[0])
    partial_path(tmp_path / "out.jsonl").unlink()
    with pytest.raises(OutputError, match="was removed"):
        output.finish()


def test_a_pipe_gets_whole_lines() -> None:
    out, into = os.pipe()
    PipeOutput(into).append(LINES[0])
    assert os.read(out, 1 << 16) == LINES[0]
    os.close(out)
    with pytest.raises(BrokenPipeError):
        PipeOutput(into).append(LINES[0])
    os.close(into)


def test_lines_of_output_are_read_as_json(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"".join(LINES))
    assert [line["custom_id"] for line in read_lines(path)] == [row.custom_id for row in ROWS]
