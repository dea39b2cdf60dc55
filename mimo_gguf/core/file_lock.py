"""Files that one process at a time works on: locks of the operating system, so a killed run leaves none behind."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from mimo_gguf.core.errors import OutputError

_POLL_S: Final = 0.5  # between looks at a lock that another process holds


def open_locked(path: Path) -> int:
    """Opens `path`, which is made if it is missing, and locks it until it is closed. Gives the descriptor.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: it cannot be opened, or is not a file.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):  # reading a pipe would wait for its other end
                raise OSError(f"{path} is not a file")
            _lock(fd)
            if is_still(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the run that held it has just finished and removed it


def is_still(path: Path, fd: int) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except OSError:  # gone, or its folder is
        return False


@contextlib.contextmanager
def locked_folder(folder: Path, name: str | Path, otherwise: str = "give another folder") -> Iterator[None]:
    """Holds the lock of a folder: a file of that name in it, or elsewhere, which is removed at the end.

    Args:
        otherwise: what to do if the folder cannot be had.

    Raises:
        OutputError: another process holds it, or nothing can be written there.
    """
    lock = folder / name
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(lock))
        except BlockingIOError:
            raise OutputError(f"{folder}: another run is working in it", hint=f"wait for it, or {otherwise}") from None
        except OSError as error:
            raise OutputError(f"{lock.parent}: {error.strerror or error}", hint=otherwise) from None
        yield


@contextlib.contextmanager
def held(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock `path`; the file is removed at the end.

    Args:
        on_wait: called once if another process has it, which is then waited for; None does not wait.

    Raises:
        BlockingIOError: another process holds it, and there is no `on_wait`.
        OSError: the file cannot be opened.
    """
    waits = False
    while True:
        try:
            fd = open_locked(path)
            break
        except BlockingIOError:
            if on_wait is None:
                raise
            if not waits:
                on_wait()
            waits = True
            time.sleep(_POLL_S)
    try:
        yield
    finally:
        if os.name != "nt":  # Windows does not remove an open file
            path.unlink(missing_ok=True)
        os.close(fd)


if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    _LOCK_BYTE: Final = 1 << 40  # far beyond the records, which stay readable

    def _lock(fd: int) -> None:
        os.lseek(fd, _LOCK_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from None

else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
