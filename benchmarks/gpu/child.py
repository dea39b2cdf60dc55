"""Runs one measurement in a process of its own, so that the device is clean before it and a crash ends it alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import Row


def ask_child(
    name: str, path: Path, settings: dict[str, Any], timeout_s: float = 240
) -> subprocess.CompletedProcess[str]:
    """Runs the measurement `name` of `benchmarks.gpu.steps`; its rows come on stdout, one JSON document a line."""
    command = [sys.executable, "-m", "benchmarks.gpu.steps", name, str(path), json.dumps(settings)]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return subprocess.CompletedProcess(command, 124, said, f"no end within {timeout_s:.0f} s")


def rows_of(done: subprocess.CompletedProcess[str]) -> list[Row]:
    """The rows that a child wrote, and one more with its last words if it failed."""
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        rows.append({"failed": done.returncode, "said": done.stderr[-500:]})
    return rows
