"""The journal believes only whole, unharmed records, and is held by one run at a time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_gguf.core.errors import OutputError
from mimo_gguf.quantization.journal import Record, open_journal

PRINT = "f" * 64
digests = st.binary(min_size=16, max_size=16)
records = st.lists(st.tuples(digests, digests), min_size=1, max_size=8)


def write(path: Path, entries: list[tuple[bytes, bytes]]) -> None:
    journal = open_journal(path, PRINT, what=path)
    for chunk, (source, output) in enumerate(entries):
        journal.append(chunk, Record(source, output))
    journal.close()


@given(records, st.data())
def test_whatever_is_cut_or_flipped_only_true_records_are_believed(
    entries: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal"
        write(path, entries)
        raw = bytearray(path.read_bytes())
        head = len(b"mimo-gguf journal 1\n") + len(PRINT) + 1
        record_bytes = (len(raw) - head) // len(entries)
        at = data.draw(st.integers(0, len(raw) - 1))
        if data.draw(st.booleans()):
            del raw[at:]
        else:
            raw[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        journal = open_journal(path, PRINT, what=path)
        assert journal.done == dict(list(enumerate(entries))[: max(0, at - head) // record_bytes])
        journal.append(99, Record(b"s" * 16, b"o" * 16))  # goes on behind the last good record
        journal.close()
        again = open_journal(path, PRINT, what=path)
        assert again.done == journal.done
        again.close()


def test_another_fingerprint_starts_afresh(tmp_path: Path) -> None:
    write(tmp_path / "journal", [(b"s" * 16, b"o" * 16)])
    journal = open_journal(tmp_path / "journal", "0" * 64, what=tmp_path)
    assert journal.done == {}
    journal.close()


def test_sealing_is_remembered(tmp_path: Path) -> None:
    write(tmp_path / "journal", [(b"s" * 16, b"o" * 16)])
    journal = open_journal(tmp_path / "journal", PRINT, what=tmp_path)
    journal.seal()
    journal.close()
    journal = open_journal(tmp_path / "journal", PRINT, what=tmp_path)
    assert journal.sealed
    assert len(journal.done) == 1
    journal.discard()
    assert not (tmp_path / "journal").exists()


def test_an_open_journal_is_locked(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "journal", PRINT, what=tmp_path / "out.gguf")
    with pytest.raises(OutputError, match=r"out\.gguf: another run is writing it"):
        open_journal(tmp_path / "journal", PRINT, what=tmp_path / "out.gguf")
    journal.discard()
    open_journal(tmp_path / "journal", PRINT, what=tmp_path).discard()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_not_a_journal(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "journal")
    with pytest.raises(OutputError, match="not a file"):
        open_journal(tmp_path / "journal", "a" * 64, what=tmp_path / "out.gguf")
