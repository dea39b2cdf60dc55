"""Copies llama.cpp's log to a file or to stderr while a command runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mimo_gguf.cli import ui
from mimo_gguf.core.errors import UsageError


@contextlib.contextmanager
def copied_log(path: Path | None, verbose: bool) -> Iterator[None]:
    """Copies llama.cpp's log to a file, or to stderr if it is `verbose`, until the end of the `with` block."""
    from mimo_gguf.llama.log import use_log

    with contextlib.nullcontext(sys.stderr) if path is None else _open_log(path) as stream:
        use_log(copy_to=ui.HarmlessLines(stream) if verbose or path is not None else None)
        try:
            yield
        finally:
            use_log(copy_to=None)


def _open_log(path: Path) -> Any:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", hint="choose another --log-file") from None
