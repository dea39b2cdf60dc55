"""Keeps llama.cpp's log off the screen, and catches what llama.cpp writes to stderr without using the log."""

from __future__ import annotations

import collections
import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import Final, Protocol

_ERROR_LEVEL: Final = 4  # GGML_LOG_LEVEL_ERROR
_WARN_LEVEL: Final = 3
_CONTINUED_LEVEL: Final = 5


class LogCopy(Protocol):
    """A stream that the log is copied to."""

    def write(self, text: str, /) -> object:
        """Writes a piece of the log."""

    def flush(self) -> object:
        """Makes what was written visible."""


class LogRing:
    """The last lines that llama.cpp logged.

    Attributes:
        copy_to: a stream to which the log is copied as it comes (a file, or stderr for --verbose), or None.
    """

    def __init__(self, n_lines: int = 2000) -> None:
        self._lines: collections.deque[tuple[int, int, str]] = collections.deque(maxlen=n_lines)
        self._lock = threading.RLock()  # a finalizer or signal handler that frees something may log in between
        self._count = 0
        self._partial = ""
        self._level = 0
        self.copy_to: LogCopy | None = None

    def write(self, level: int, text: str) -> None:
        """Adds a piece of log as llama.cpp emits it: whole lines, parts of lines, or continuations."""
        with self._lock:
            if level != _CONTINUED_LEVEL:
                self._level = level
            if self.copy_to is not None:
                self.copy_to.write(text)
                self.copy_to.flush()
            *whole, self._partial = (self._partial + text).split("\n")
            for line in whole:
                self._lines.append((self._count, self._level, line))
                self._count += 1

    def renew_lock(self) -> None:
        """Makes a new lock in a forked process, where the thread that held the old one does not exist."""
        self._lock = threading.RLock()

    @property
    def mark(self) -> int:
        """The present point in the log, for `lines` and `reason`."""
        return self._count

    def lines(self, since: int = 0, level: int = 0) -> list[str]:
        """The lines logged after the mark `since`, of at least `level` (0 everything, 3 warnings, 4 errors)."""
        with self._lock:
            return [line for count, of_level, line in self._lines if count >= since and of_level >= level]

    def reason(self, since: int) -> str:
        """The reason of a failure after the mark `since`, in llama.cpp's own words, as one line."""
        errors = [_without_function(line) for line in self.lines(since, _ERROR_LEVEL) if line.strip()]
        loading = (line.removeprefix("error loading model: ") for line in errors if "failed to load model" not in line)
        reasons = [_without_function(line) for line in loading]
        if reasons:
            return reasons[0].strip()
        warnings = [_without_function(line) for line in self.lines(since, _WARN_LEVEL) if line.strip()]
        return warnings[-1].strip() if warnings else "llama.cpp gave no reason"


def _without_function(line: str) -> str:
    """Removes the function's name: `llama_model_load: error loading model: x` -> `error loading model: x`."""
    name, colon, rest = line.partition(": ")
    return rest if colon and name.replace("_", "").isalnum() and "_" in name else line


LOG: Final = LogRing()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LOG.renew_lock)


_screen: Final = threading.RLock()  # held while stderr is replaced, which two threads must not do at the same time


@contextlib.contextmanager
def kept_from_stderr() -> Iterator[list[str]]:
    """Collects what llama.cpp writes to stderr directly, as its grammar parser does. The list is filled at the end."""
    said: list[str] = []
    with _screen, tempfile.TemporaryFile() as file:
        screen = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            file.seek(0)
            said += file.read().decode("utf-8", "replace").splitlines()


def use_log(*, copy_to: LogCopy | None) -> None:
    """Copies llama.cpp's log to a stream as it comes (--verbose, --log-file). None stops copying."""
    LOG.copy_to = copy_to
