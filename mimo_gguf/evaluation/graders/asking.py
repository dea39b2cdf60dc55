"""Asks graders that run in processes of their own, and ends those that need too long."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

from mimo_gguf.evaluation.graders.grade import Grade

_MODULE: Final = "mimo_gguf.evaluation.graders.libraries"
_START_S: Final = 60.0  # for the first question: importing SymPy takes seconds on a busy machine
TIME_LIMIT_S: Final = 20.0


class Judge:
    """A process that grades answers, one at a time. It is started when it is first asked, and again after it died."""

    def __init__(self, *, limit_s: float = TIME_LIMIT_S, start_s: float = _START_S) -> None:
        """Makes a judge that needs at most `limit_s` seconds for an answer, and `start_s` more for its first."""
        self._limit_s, self._start_s = limit_s, start_s
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def grade(self, grader: str, answer: str, expected: Any) -> Grade:
        """The grade of an answer. One that takes too long, or kills the process, is wrong, and the grade says so."""
        is_new = self._process is None
        process = self._process or self._start()
        question = json.dumps({"grader": grader, "answer": answer, "expected": expected})
        try:
            assert process.stdin is not None
            process.stdin.write(question + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=self._limit_s + self._start_s * is_new)
            return Grade.from_json(json.loads(line))
        except queue.Empty:
            self.close()
            return Grade(0.0, None, f"not graded within {self._limit_s:g} s")
        except (OSError, ValueError):
            self.close()
            return Grade(0.0, None, "the grader died of it")

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()  # its reader sees the end of its output
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(each).absolute()) for each in sys.path)}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, encoding="utf-8", env=environment,
        )  # fmt: skip
        self._process, self._lines = process, queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, self._lines), daemon=True, name="mimo-gguf-judge").start()
        return process


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Hands on each line of a process, and an empty one at its end."""
    with contextlib.suppress(ValueError, OSError):  # it was closed meanwhile
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
    lines.put("")
