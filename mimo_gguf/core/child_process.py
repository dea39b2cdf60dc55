"""A question asked in a process of its own, because what answers it may end or hang the process it is in."""

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
    """What `python -m module` says to `question`: both are JSON, on its stdin and as the last line of its stdout.

    Raises:
        ChildFailed: it ended without an answer, or gave none in time.
    """
    command = [sys.executable, "-P", "-m", module]  # -P: not whatever lies in the current folder
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
        raise ChildFailed("it said something else than an answer") from None


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """The signal that ended it, or the last line it wrote."""
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
