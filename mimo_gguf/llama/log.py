"""What llama.cpp says: its log, kept and never on the screen, and what it writes to stderr past it."""

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
    """Where the log is copied to while it comes."""

    def write(self, text: str, /) -> object:
        """Takes a piece of it."""

    def flush(self) -> object:
        """Shows what has been taken."""


class LogRing:
    """The last lines llama.cpp logged, and where to copy them (a file, stderr for --verbose) while they come."""

    def __init__(self, n_lines: int = 2000) -> None:
        self._lines: collections.deque[tuple[int, int, str]] = collections.deque(maxlen=n_lines)
        self._lock = threading.Lock()
        self._count = 0
        self._partial = ""
        self._level = 0
        self.copy_to: LogCopy | None = None

    def write(self, level: int, text: str) -> None:
        """Takes a piece of log as llama.cpp emits it: whole lines, parts of lines, continuations."""
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

    @property
    def mark(self) -> int:
        """A point in the log, to ask later what came after it."""
        return self._count

    def lines(self, since: int = 0, level: int = 0) -> list[str]:
        """Lines logged after `since`, of at least `level` (0 everything, 3 warnings, 4 errors)."""
        with self._lock:
            return [line for count, of_level, line in self._lines if count >= since and of_level >= level]

    def reason(self, since: int) -> str:
        """What went wrong after `since`, in llama.cpp's own words, as one line."""
        errors = [_without_function(line) for line in self.lines(since, _ERROR_LEVEL) if line.strip()]
        loading = (line.removeprefix("error loading model: ") for line in errors if "failed to load model" not in line)
        telling = [_without_function(line) for line in loading]
        if telling:
            return telling[0].strip()
        warnings = [_without_function(line) for line in self.lines(since, _WARN_LEVEL) if line.strip()]
        return warnings[-1].strip() if warnings else "llama.cpp gave no reason"


def _without_function(line: str) -> str:
    """`llama_model_load: error loading model: x` -> `error loading model: x`."""
    name, colon, rest = line.partition(": ")
    return rest if colon and name.replace("_", "").isalnum() and "_" in name else line


LOG: Final = LogRing()


@contextlib.contextmanager
def kept_from_stderr() -> Iterator[list[str]]:
    """Collects what llama.cpp writes to stderr past its log (its grammar parser does), whole once the block is left."""
    said: list[str] = []
    with tempfile.TemporaryFile() as file:
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
    """Copies llama.cpp's log to a stream as it comes (--verbose, --log-file); None stops copying."""
    LOG.copy_to = copy_to
