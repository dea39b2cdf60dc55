"""Lines of files and pipes: numbered, bounded, and as soon as they are there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mimo_gguf.batch import reading
from mimo_gguf.batch.reading import InputFile, Line, Lines
from mimo_gguf.core.errors import UsageError


def all_lines(lines: Lines) -> list[Line]:
    found = []
    while block := lines.block():
        found += block
    return found


def test_lines_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  \ntwo\n" + b"x" * 5000 + b"\nthree\nlast")
    monkeypatch.setattr(reading, "_PIECE", 3)
    monkeypatch.setattr(reading, "_LONGEST", 100)
    file = InputFile(path)
    expected = [(1, b"one\r"), (4, b"two"), (5, None), (6, b"three"), (7, b"last")]
    assert all_lines(file.lines()) == expected == all_lines(file.lines())
    file.close()
    path.write_bytes(b"")
    assert all_lines(InputFile(path).lines()) == []


def test_a_block_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"{}\n" * 3000)
    lines = InputFile(path).lines()
    assert [len(lines.block()) for _ in range(4)] == [1024, 1024, 952, 0]
    lines = InputFile(path).lines()
    monkeypatch.setattr(reading, "_LOOK_AHEAD_BYTES", 20)
    assert len(lines.block()) == 10


def test_a_pipe_gives_what_is_there() -> None:
    out, into = os.pipe()
    lines = Lines(out)
    os.write(into, b"a\nb\nhal")
    assert lines.block() == [(1, b"a"), (2, b"b")]
    later = threading.Timer(0.05, lambda: (os.write(into, b"f\n"), os.close(into)))
    later.start()
    assert lines.block() == [(3, b"half")]
    assert lines.block() == []
    later.join()
    os.close(out)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"{}\n")
    file = InputFile(path)
    file.check_unchanged()
    with path.open("ab") as more:
        more.write(b"{}\n")
    with pytest.raises(UsageError, match="has changed"):
        file.check_unchanged()
    file = InputFile(path)
    (tmp_path / "new").write_bytes(b"{}\n{}\n")
    (tmp_path / "new").replace(path)
    with pytest.raises(UsageError, match="has changed"):
        file.check_unchanged()
    path.unlink()
    with pytest.raises(UsageError, match="has changed"):
        InputFile.check_unchanged(file)


@pytest.mark.parametrize(("name", "words"), [("nothing", "no such file"), (".", "is a folder")])
def test_what_is_not_an_input(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        InputFile(tmp_path / name)
