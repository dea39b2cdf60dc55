"""Both ways of reading and writing at an offset do the same."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mimo_gguf.core import positioned_io


@pytest.fixture(params=["preadv", "lseek"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    if request.param == "lseek":
        monkeypatch.delattr(os, "preadv", raising=False)
    elif not hasattr(os, "preadv"):
        pytest.skip("this system has no preadv")
    yield importlib.reload(positioned_io)
    monkeypatch.undo()
    importlib.reload(positioned_io)


def test_many_threads_write_and_read_at_their_offsets(way: ModuleType, tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(40_000)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0))
    offsets = range(0, len(content), 1000)

    def write(offset: int) -> int:
        return int(way.write_at(fd, memoryview(content)[offset : offset + 1000], offset))

    def read(offset: int) -> bytes:
        out = bytearray(1000)
        assert way.read_at(fd, memoryview(out), offset) == 1000
        return bytes(out)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(write, reversed(offsets))) == {1000}
        assert b"".join(pool.map(read, offsets)) == content
    assert way.read_at(fd, memoryview(bytearray(10)), len(content)) == 0
    os.close(fd)
