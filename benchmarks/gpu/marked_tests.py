"""The tests marked `gpu`, run on the device that is measured: how many passed, and which did not."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.gpu.record import Row

ROOT: Final = Path(__file__).parents[2]
CASES: Final = "tests/gpu"


def run_tests(timeout_s: float, cases: str = CASES) -> Iterator[Row]:
    """One row about all of them; tests that are not done in time end it, and it says so."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "gpu", "--tb=line", "-p", "no:cacheprovider", "--junitxml", str(report)]
        command = [sys.executable, "-m", "pytest", *options, cases]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            yield {"failed": "timeout"}
            return
        if not report.is_file():  # it died, or found no tests
            yield {"failed": done.returncode, "said": (done.stdout + done.stderr)[-1000:]}
            return
        yield summary(report.read_text(encoding="utf-8"))


def summary(report: str) -> Row:
    """The row of a report in JUnit's form: the number of tests by outcome, and the names of those that failed."""
    (suite,) = ElementTree.fromstring(report).iter("testsuite")
    n_tests, n_failed, n_errors, n_skipped = (
        int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
    )
    wrong = [case.get("name", "") for case in suite.iter("testcase") if case.find("failure") is not None]
    wrong += [case.get("name", "") for case in suite.iter("testcase") if case.find("error") is not None]
    return {
        "tests": n_tests,
        "passed": n_tests - n_failed - n_errors - n_skipped,
        "skipped": n_skipped,
        "wrong": wrong,
        "seconds": float(suite.get("time", 0)),
    }
