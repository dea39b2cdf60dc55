"""Reading and writing an open file at an offset, from any thread, on any system."""

from __future__ import annotations

import os

if hasattr(os, "preadv") and hasattr(os, "pwrite"):

    def read_at(fd: int, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view` from byte `offset`; how much of it, 0 at the end of the file."""
        return os.preadv(fd, [view], offset)

    def write_at(fd: int, view: memoryview, offset: int) -> int:
        """Writes the beginning of `view` to byte `offset`; how much of it."""
        return os.pwrite(fd, view, offset)

else:  # Windows, older macOS: one file position for all threads
    import threading

    _position = threading.Lock()

    def read_at(fd: int, view: memoryview, offset: int) -> int:
        """Fills the beginning of `view` from byte `offset`; how much of it, 0 at the end of the file."""
        with _position:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(view))
        view[: len(data)] = data
        return len(data)

    def write_at(fd: int, view: memoryview, offset: int) -> int:
        """Writes the beginning of `view` to byte `offset`; how much of it."""
        with _position:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, view)
