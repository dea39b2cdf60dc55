"""Connects to RPC workers. If one goes away, one clear error ends the process."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from mimo_gguf.cli import ui
from mimo_gguf.core.errors import BackendError

_SHOW_CURSOR: Final = "\x1b[?25h"


def use_workers(endpoints: Sequence[str], *, resumes: bool = False) -> None:
    """Connects to the workers, if there are any. If one goes away later, an error says how to go on.

    Args:
        resumes: whether the conversation is saved after every answer, for `--resume`.

    Raises:
        UsageError, BackendError: as `add_workers`.
    """
    from mimo_gguf.hardware.rpc import add_workers

    if endpoints:
        add_workers(endpoints)
        kept = "; then go on with the conversation: mimo-gguf chat FILE --resume" if resumes else ""
        report_aborts(f"start the worker again: mimo-gguf worker{kept}")


def report_aborts(hint: str) -> None:
    """Reports an abort of llama.cpp as an error with exit code 1, like any other; `hint` says how to go on.

    Raises:
        BackendError: llama.cpp cannot be loaded.
    """
    from mimo_gguf.llama.abort import before_abort

    terminal = _terminal_settings()

    def leave(reason: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{_SHOW_CURSOR}\n")
        ui.print_error(BackendError(_in_words(reason), hint=hint))
        _restore(terminal)
        sys.stdout.flush()
        os._exit(BackendError.exit_code)  # nothing else in this process can be relied on

    before_abort(leave)


def _in_words(reason: str) -> str:
    """Explains the reason of an abort, like `/build/ggml-rpc.cpp:567: Remote RPC server crashed ...`."""
    where, _, what = reason.partition(": ")
    if "rpc" in where.lower():
        return f"a worker went away, and llama.cpp cannot go on without it ({what})"
    return f"llama.cpp cannot go on: {reason}"


def _terminal_settings() -> object | None:
    if sys.platform == "win32" or not sys.stdin.isatty():
        return None
    import termios

    return termios.tcgetattr(sys.stdin)


def _restore(settings: object | None) -> None:
    if settings is not None and sys.platform != "win32":
        import termios

        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)  # type: ignore[arg-type]
