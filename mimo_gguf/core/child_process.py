"""Questions for a process of its own, because answering them may end or hang the process that does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class ChildFailed(Exception):
    """No answer came; the text says why."""


def ask_child(module: str, question: Any, *, timeout_s: float) -> Any:
    """The answer of `python -m module` to `question`. Both are JSON: on its stdin, and as the last line of its stdout.

    Raises:
        ChildFailed: the process ended without an answer, or gave none within `timeout_s` seconds.
    """
    command = [sys.executable, "-P", "-m", module]  # -P: import nothing from the current folder
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(folder).absolute()) for folder in sys.path)}
    try:
        done = subprocess.run(
            command, input=json.dumps(question), capture_output=True, encoding="utf-8", errors="replace",
            env=environment, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ChildFailed(f"{sys.executable}: {error.strerror or error}") from None
    if done.returncode != 0:
        raise ChildFailed(_why(done))
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise ChildFailed("its output is not an answer") from None


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """The signal that ended it, or the last line it wrote."""
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
