"""Runs one measurement in a process of its own, so that the device is clean before it and a crash ends it alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.record import Row

MOST_WORDS: Final = 1000


def rows_of_child(name: str, path: Path, settings: dict[str, Any], timeout_s: float = 240) -> Iterator[Row]:
    """The rows of the measurement `name` of `benchmarks.gpu.steps`, as they come, and one more if it failed.

    That one says how it ended ("failed": the exit code, the signal's name or "timeout") and what it said ("said").
    """
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "benchmarks.gpu.steps",
        name,
        str(path),
        json.dumps(settings),
    ]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                if line.startswith("{"):
                    yield json.loads(line)
            code = process.wait()
        finally:
            is_late = not timer.is_alive()
            timer.cancel()
            process.kill()
            process.wait()
        if code:
            said.seek(0)
            yield failure("timeout" if is_late else code, said.read())


def failure(ended: int | str, words: str) -> Row:
    """The row of a child that failed. After a signal its first words matter: its threads are listed behind them."""
    if isinstance(ended, int) and ended < 0:
        return {"failed": signal.Signals(-ended).name, "said": words[:MOST_WORDS]}
    return {"failed": ended, "said": words[-MOST_WORDS:]}
