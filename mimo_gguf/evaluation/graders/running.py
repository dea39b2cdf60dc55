"""Runs what a model wrote in the cage, and tries it: a function with its tests, a program with inputs and outputs."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.evaluation.graders.grade import Grade

_CAGE: Final = Path(__file__).with_name("cage.py")
_BLOCK: Final = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE)
TIME_LIMIT_S: Final = 10.0
_MEMORY_BYTES: Final = 1 << 30
_MOST_OUTPUT: Final = 16 << 20
_NO_CAGE: Final = "no cage: "
_CAME_TO_END: Final = "came to its end"
_MOST_TESTS: Final = 1000


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended.

    Attributes:
        ok: it came to its end, and not by leaving early.
        output: what it printed.
        why: how it ended otherwise.
    """

    ok: bool
    output: str
    why: str | None = None


def run_caged(program: str, text: str = "", *, limit_s: float = TIME_LIMIT_S) -> Ran:
    """Runs a Python program with `text` on its stdin.

    It has a folder of its own, `limit_s` seconds, a gibibyte of memory, no network, no further processes, and it cannot
    change a file.

    Raises:
        UsageError: this machine has no such cage.
    """
    with tempfile.TemporaryDirectory(prefix="mimo-gguf-") as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, encoding="utf-8", errors="replace")
        printed, told = Path(folder) / "printed", Path(folder) / "told"
        with printed.open("wb") as out:
            why = _run(path, text, out.fileno(), limit_s)
        said = told.read_text(encoding="utf-8", errors="replace") if told.exists() else ""
        if said.startswith(_NO_CAGE):
            raise UsageError(
                f"a model's code cannot be run safely here: {said.removeprefix(_NO_CAGE).strip()}",
                hint="use Linux with libseccomp, or leave this task out",
            )
        with printed.open("rb") as file:
            output = file.read(_MOST_OUTPUT).decode("utf-8", "replace")
        if why is None and said.strip() != _CAME_TO_END:
            why = "it left before its end"
        return Ran(why is None, output, why)


def _run(path: Path, text: str, out: int, limit_s: float) -> str | None:
    """Runs the program; gives why it failed, or None."""
    limits = {
        "RLIMIT_AS": _MEMORY_BYTES, "RLIMIT_FSIZE": _MOST_OUTPUT, "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(limit_s) + 1,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", str(_CAGE), path.name, json.dumps(limits)], cwd=path.parent, stdin=subprocess.PIPE,
        stdout=out, stderr=subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", ""), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        _, errors = process.communicate(text.encode("utf-8", "replace"), timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"not ready within {limit_s:g} s"
    if process.returncode == 0:
        return None
    lines = errors[-2000:].decode("utf-8", "replace").strip().splitlines()
    return (lines[-1] if lines else f"exit code {process.returncode}")[:200]


def missing_cage() -> str | None:
    """Why a model's code cannot be run here; None if it can."""
    if sys.platform != "linux":
        return "a model's code is run on Linux only, which can lock it in"
    try:
        done = run_caged("print(6 * 7)", limit_s=60)
    except UsageError as error:
        return error.message
    return None if done.ok and done.output == "42\n" else f"the cage does not work: {done.why}"


def code_in(answer: str) -> str:
    """The last block of code in an answer; without one, the whole answer."""
    blocks = _BLOCK.findall(answer)
    return str(blocks[-1]) if blocks else answer


# ---- HumanEval: a function, and a test that raises an error


def grade_function(answer: str, expected: Any) -> Grade:
    """Runs a function of HumanEval with its test, after what its prompt has above it."""
    prompt, name = str(expected["prompt"]), str(expected["entry_point"])
    above = prompt[: max(0, prompt.rfind(f"def {name}"))]
    code = code_in(answer)
    done = run_caged(f"{above}\n{code}\n\n{expected['test']}\n\ncheck({name})\n")
    return Grade(float(done.ok), code[:200], None if done.ok else done.why)


# ---- LiveCodeBench: a program that reads and prints, or a method that is called


def grade_program(answer: str, expected: Any) -> Grade:
    """Tries a program of LiveCodeBench with its public and private tests; it is right if it passes all."""
    code, tests = code_in(answer), read_tests(expected)
    method = _method(expected)
    for number, test in enumerate(tests, 1):
        done = run_caged(_calling(code, method) if method else code, test["input"])
        why = None if done.ok else done.why
        if why is None and not _same(done.output, test["output"], as_values=bool(method)):
            why = "it gives something else"
        if why is not None:
            return Grade(0.0, code[:200], f"test {number} of {len(tests)}: {why}")
    return Grade(1.0, code[:200])


def _method(expected: Mapping[str, Any]) -> str | None:
    """The name of the method that is called; None for a program. Raises UsageError if that cannot be read."""
    try:
        name = json.loads(expected.get("metadata") or "{}").get("func_name")
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"metadata cannot be read: {error}", hint="fetch the data again") from None
    return str(name) if name else None


def read_tests(expected: Mapping[str, Any]) -> list[dict[str, str]]:
    """The tests of a problem. The private ones may be packed: base64 of zlib of a pickled text.

    Raises:
        UsageError: they cannot be read.
    """
    tests: list[dict[str, str]] = []
    for name in ("public_test_cases", "private_test_cases"):
        packed = str(expected[name])
        try:
            for test in json.loads(packed if packed.lstrip().startswith("[") else _unpacked(packed)):
                tests.append({"input": str(test["input"]), "output": str(test["output"])})
        except (ValueError, zlib.error, pickle.UnpicklingError, EOFError, TypeError, KeyError) as error:
            raise UsageError(f"{name} cannot be read: {error}", hint="fetch the data again") from None
    return tests[:_MOST_TESTS]


def _unpacked(packed: str) -> str:
    found = _TextsOnly(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
    if not isinstance(found, str):
        raise TypeError("not a pickled text")
    return found


class _TextsOnly(pickle.Unpickler):
    """Reads pickled texts, and nothing that runs anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is not a text")


def _calling(code: str, method: str) -> str:
    """A program that calls a method with the values on the lines of its input, and prints what it gives."""
    return (
        "from typing import *\nimport collections, functools, heapq, itertools, math, bisect, string, sys\n"
        f"{code}\n\nimport json as _json, sys as _sys\n"
        "_values = [_json.loads(line) for line in _sys.stdin.read().splitlines() if line.strip()]\n"
        f"_given = Solution().{method}(*_values)\n"
        "print('\\n' + _json.dumps(list(_given) if isinstance(_given, tuple) else _given))\n"
    )


def _same(output: str, wanted: str, *, as_values: bool) -> bool:
    """Whether an output is the wanted one: the same value, or the same lines but for spaces at their ends."""
    if as_values:
        lines = output.strip().splitlines()
        with contextlib.suppress(ValueError, IndexError, RecursionError):
            return bool(json.loads(lines[-1]) == json.loads(wanted))
        return False
    given, right = ([line.rstrip() for line in text.strip().splitlines()] for text in (output, wanted))
    return given == right or _as_numbers(given) == _as_numbers(right) is not None


def _as_numbers(lines: list[str]) -> list[float] | None:
    try:
        return [float(word) for line in lines for word in line.split()]
    except ValueError:
        return None
