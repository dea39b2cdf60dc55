"""Reads at any offset and length are the file's bytes, cached or not, directly or not, from many threads."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mimo_gguf.core import data_file
from mimo_gguf.core.data_file import DataFile, FileBuffer
from mimo_gguf.core.errors import GgufError

SIZE = 5_000_003  # no multiple of a block
RANGES = [(0, SIZE), (1, SIZE - 1), (4096, 1 << 20), (4095, (1 << 20) + 1), (4097, (1 << 20) - 1), (777, 300_000),
          (SIZE - 400_000, 400_000), (SIZE - 3, 3), (2_000_000, 0)]  # fmt: skip


@pytest.fixture(scope="module")
def content() -> bytes:
    return np.random.default_rng(1).bytes(SIZE)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "data.bin"
    with path.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return path


def forget(path: Path, first: int = 0, length: int = 0) -> None:
    """Takes the file, or a range of it, out of the page cache."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("no posix_fadvise")
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, first, length, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def read(file: DataFile, offset: int, length: int) -> bytes:
    out = FileBuffer(length).at(offset, length)
    file.read_into(offset, out)
    return out.tobytes()


def test_any_memory(path: Path, content: bytes) -> None:
    file = DataFile(path, GgufError)
    memory = np.empty(SIZE + 64, np.uint8)
    for shift in (0, 1, 7, 64):
        forget(path)
        out = memory[shift : shift + 2_000_000]
        file.read_into(1000, out)
        assert out.tobytes() == content[1000:2_001_000]
    file.close()


@pytest.mark.parametrize("state", ["cached", "cold", "half cached"])
@pytest.mark.parametrize("direct", [True, False])
def test_any_range(path: Path, content: bytes, state: str, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not direct:
        monkeypatch.setattr(data_file, "_DIRECT_MIN", 1 << 60)
    file = DataFile(path, GgufError)
    for offset, length in RANGES:
        if state == "cold":
            forget(path)
        elif state == "half cached":
            path.read_bytes()
            forget(path, 1 << 20, 1 << 20)
        assert read(file, offset, length) == content[offset : offset + length], (offset, length)
    file.close()


@pytest.mark.parametrize("direct", [True, False])
def test_end_of_file(path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not direct:
        monkeypatch.setattr(data_file, "_DIRECT_MIN", 1 << 60)
    file = DataFile(path, GgufError)
    for cold in (False, True):
        if cold:
            forget(path)
        with pytest.raises(GgufError, match=f"the file ends at byte {SIZE}, 7 bytes too early"):
            read(file, SIZE - 500_000, 500_007)
    file.close()


def test_many_threads(path: Path, content: bytes) -> None:
    file = DataFile(path, GgufError)
    forget(path)
    ranges = [(offset, 400_000) for offset in range(0, SIZE - 400_000, 100_001)]
    with ThreadPoolExecutor(4) as pool:
        for (offset, length), got in zip(ranges, pool.map(lambda r: read(file, *r), ranges), strict=True):
            assert got == content[offset : offset + length]
    file.close()


def test_file_systems_without_direct_reads(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_DIRECT may be refused at open, or only when reading."""
    monkeypatch.setattr(data_file._DirectReader, "read", lambda *_: 0)
    forget(path)
    file = DataFile(path, GgufError)
    assert read(file, 5, SIZE - 5) == content[5:]
    file.close()
    monkeypatch.setattr(data_file._DirectReader, "of", lambda _: None)
    file = DataFile(path, GgufError)
    assert read(file, 5, SIZE - 5) == content[5:]
    file.close()


@pytest.mark.skipif(sys.platform != "linux", reason="direct reads are for Linux")
def test_cold_reads_leave_the_page_cache_alone(path: Path) -> None:
    reader = data_file._DirectReader.of(path)
    if reader is None:
        pytest.skip("no direct reads on this file system")
    assert reader.is_cached(0, SIZE)
    forget(path)
    assert not reader.is_cached(0, SIZE)
    file = DataFile(path, GgufError)
    read(file, 0, SIZE)
    assert not reader.is_cached(0, SIZE)
    file.close()
    reader.close()
