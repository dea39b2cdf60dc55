"""Runs the program as a user does: in a folder of its own, in a process of its own or (quicker) in this one."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

PROGRAM = [sys.executable, "-m", "mimo_gguf"]


def hear_interrupts() -> None:
    """For `preexec_fn`: background jobs of a shell ignore Ctrl-C, and so would every process they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(cwd: Path, *arguments: str | Path, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"} | env,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_here(cwd: Path, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """As `run`, in this process: for what neither signals, pipes nor a fresh interpreter matter to."""
    from mimo_gguf.cli import ui
    from mimo_gguf.cli.app import main

    words = list(map(str, arguments))
    ui.out.width = ui.err.width = int(env.get("COLUMNS", "100"))  # which they read once, when they are made
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["mimo-gguf", *words]),
        mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"} | env),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def assert_clear_error(done: subprocess.CompletedProcess[str], *expected: str, code: int = 1) -> None:
    """One line of error, one of hint, the promised exit code, no traceback."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    assert len(errors) == 1, done.stderr
    assert len(hints) == 1, done.stderr
    for text in expected:
        assert text in errors[0], errors[0]
