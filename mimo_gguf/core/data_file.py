"""An input file read at offsets from many threads: from the page cache if it is cached, else past it.

Model files are read once, and they are larger than memory. Through the page cache, each cold gigabyte costs the kernel
up to 2.9 s of CPU time on a virtual machine (finding, filling, reclaiming pages); read directly, 0.1 s. So on Linux a
read into a `FileBuffer` first asks whether its range is cached (mincore). If not, it uses O_DIRECT: the disk writes
into the caller's memory. Other systems, other memory, and file systems without O_DIRECT get a plain read.

A read with RWF_NOWAIT would answer the same question, but it starts reading ahead into the cache.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import Final

import numpy as np

from mimo_gguf.core import positioned_io
from mimo_gguf.core.errors import MimoGgufError
from mimo_gguf.core.model_source import Bytes, FileStamp

_ALIGNMENT: Final = 4096  # of offset, length and address; every block device's sector divides it
_DIRECT_MIN: Final = 1 << 18  # smaller reads are not worth the detour


class FileBuffer:
    """Memory for ranges of files, aligned so that a cold range is read into it without a copy."""

    def __init__(self, n_bytes: int) -> None:
        self._memory = np.frombuffer(mmap.mmap(-1, n_bytes + _ALIGNMENT), np.uint8)

    def at(self, offset: int, n_bytes: int) -> Bytes:
        """The memory for `n_bytes` from byte `offset` of a file, uint8 [n_bytes]; every call gives the same memory."""
        start = offset % _ALIGNMENT
        return self._memory[start : start + n_bytes]


class DataFile:
    """Reads a file at offsets, from any thread.

    It reads into the caller's buffer instead of mapping the file. So the page cache does not count as the process's
    resident memory, and a file that shrinks while it is read raises an error instead of a bus fault.

    Args:
        error: the class of the error if the file ends too early.
    """

    def __init__(self, path: Path, error: type[MimoGgufError]) -> None:
        self.path = path
        self.stamp = FileStamp.of(path)
        self._error = error
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._direct = _DirectReader.of(path)

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fills `out` (contiguous uint8, any shape) from byte `offset`.

        Raises:
            MimoGgufError: of the class given, if the file ends too early.
        """
        view = out.data.cast("B")
        done = self._read_past_cache(view, offset) if (out.ctypes.data - offset) % _ALIGNMENT == 0 else 0
        while done < len(view):
            n = positioned_io.read_at(self._fd, view[done:], offset + done)
            if n == 0:
                raise self._error(
                    f"{self.path}: the file ends at byte {offset + done}, {len(view) - done} bytes too early",
                    hint="the file is truncated; download it again",
                )
            done += n

    def _read_past_cache(self, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view` without bringing anything into the page cache, and returns the number of bytes.

        It is 0 if that is impossible or not worth it.
        """
        if self._direct is None or len(view) < _DIRECT_MIN or self._direct.is_cached(offset, len(view)):
            return 0
        return self._direct.read(view, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._direct is not None:
            self._direct.close()
            self._direct = None


class _DirectReader:
    """Reads with O_DIRECT, which needs aligned memory: the first and last block of a range are read into spare ones."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._spare = threading.local()
        # Nothing is read from it: its address serves to ask which pages of the file are in memory.
        self._mapping = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
        self._address = np.frombuffer(self._mapping, np.uint8).ctypes.data
        self._mincore = ctypes.CDLL(None, use_errno=True).mincore
        self._mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]

    @classmethod
    def of(cls, path: Path) -> _DirectReader | None:
        """A reader for `path`; None if the system or the file system has no such reads, or if the file is empty."""
        if sys.platform != "linux":
            return None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            return None
        try:
            return cls(fd)
        except (OSError, ValueError, AttributeError):
            os.close(fd)
            return None

    def is_cached(self, offset: int, n_bytes: int) -> bool:
        """Whether all of the range lies in the page cache; also True if the system does not say."""
        first = offset - offset % mmap.PAGESIZE
        length = min(offset + n_bytes, len(self._mapping)) - first
        if length <= 0:
            return True
        resident = np.empty(-(-length // mmap.PAGESIZE), np.uint8)
        if self._mincore(self._address + first, length, resident.ctypes.data):
            return True
        return bool((resident & 1).all())

    def read(self, view: memoryview, offset: int) -> int:
        """Fills `view` from byte `offset`, and returns the number of bytes, which is less if a direct read fails.

        `view` is at least a block long, and its address is as far past a block's start as `offset` is.
        """
        skip = offset % _ALIGNMENT
        head = -offset % _ALIGNMENT
        tail = (len(view) - head) % _ALIGNMENT
        first, last = self._spare_blocks()
        blocks = [first] * bool(head) + [view[head : len(view) - tail]] + [last] * bool(tail)
        try:
            n = os.preadv(self._fd, blocks, offset - skip)
        except OSError:
            return 0
        if head:
            view[:head] = first[skip:]
        if tail:
            view[len(view) - tail :] = last[:tail]
        return max(0, min(n - skip, len(view)))

    def _spare_blocks(self) -> tuple[memoryview, memoryview]:
        """Two aligned blocks that belong to this thread."""
        blocks: tuple[memoryview, memoryview] | None = getattr(self._spare, "blocks", None)
        if blocks is None:
            memory = memoryview(mmap.mmap(-1, 2 * _ALIGNMENT))
            blocks = self._spare.blocks = (memory[:_ALIGNMENT], memory[_ALIGNMENT:])
        return blocks

    def close(self) -> None:
        self._mapping.close()
        os.close(self._fd)
