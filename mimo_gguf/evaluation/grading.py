"""Grades all answers to a task, and writes one line for each: what was asked, said and found, and what was right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import MimoGgufError, OutputError, UsageError
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.core.paths import path_kind
from mimo_gguf.evaluation.answers import Answer
from mimo_gguf.evaluation.graders import grade, libraries, running
from mimo_gguf.evaluation.graders.asking import Judge
from mimo_gguf.evaluation.graders.grade import Grade
from mimo_gguf.evaluation.problems import Problem, custom_id
from mimo_gguf.evaluation.scores import Graded
from mimo_gguf.evaluation.task import CODE_GRADERS, Task

OnGraded = Callable[[int, int], None]  # how many of how many
Grader = Callable[[str, Any], Grade]

_HERE: Final[dict[str, Grader]] = {"choice": grade.grade_choice, "number": grade.grade_number}
_CAGED: Final[dict[str, Grader]] = {"function": running.grade_function, "programs": running.grade_program}


@dataclass(frozen=True, slots=True)
class Result:
    """An answer, its problem, and its grade: a line of the results."""

    problem: Problem
    repeat: int
    answer: Answer
    grade: Grade | None

    def as_json(self) -> dict[str, Any]:
        """The line as a JSON document."""
        grade = self.grade.as_json() if self.grade else {"score": None, "found": None, "why": self.answer.error}
        return {
            "problem": self.problem.id, "repeat": self.repeat, **grade, "expected": self.problem.expected,
            "finish": self.answer.finish, "tokens": self.answer.n_tokens, "seconds": self.answer.seconds,
            "answer": self.answer.text, "id": self.answer.id,
        }  # fmt: skip


def check_grader(task: Task, *, allow_code: bool) -> None:
    """Refuses a task whose answers cannot be graded here, before anything is asked.

    Raises:
        UsageError: the grader runs a model's code, and that is not allowed.
        MimoGgufError: a library is missing, or this machine has no cage for the code.
    """
    if task.grader in CODE_GRADERS:
        if not allow_code:
            raise UsageError(
                f"{task.name} runs programs that the model writes",
                hint="--allow-code lets them run, without network and with limits; see docs/evaluate.md",
            )
        if why := running.missing_cage():
            raise MimoGgufError(f"{task.name}: {why}", hint="use Linux with libseccomp, or leave this task out")
    elif lacks := libraries.missing(task.grader):
        what, hint = lacks
        raise MimoGgufError(f"{task.name}: {what}", hint=hint)


def grade_all(
    task: Task, problems: Sequence[Problem], answers: Iterable[Answer], path: Path, on_graded: OnGraded | None = None
) -> list[Result]:
    """Grades answers, and writes the results to `path`. Answers that it holds already are not graded again.

    Answers to what is not asked any more are left out. Results are in the order of the problems.

    Raises:
        OutputError: the results cannot be written.
        UsageError: a problem's tests cannot be read.
    """
    known = _read_grades(path)
    by_name = {answer.custom_id: answer for answer in answers}
    asked = [(each, n) for each in problems for n in range(1, task.repeats + 1)]
    given = [(each, n, by_name[name]) for each, n in asked if (name := custom_id(task, each, n)) in by_name]
    done: list[Result] = []
    with _Notes(path) as notes, _grader(task) as graded:

        def one(each: tuple[Problem, int, Answer]) -> Result:
            problem, repeat, answer = each
            if answer.error is not None:
                return Result(problem, repeat, answer, None)
            if (found := known.get(_key(problem.id, repeat, answer.text, problem.expected))) is not None:
                return Result(problem, repeat, answer, found)
            result = Result(problem, repeat, answer, graded(answer.text, problem.wholly_expected()))
            notes.add(result)
            return result

        with ThreadPoolExecutor(_n_threads(task)) as pool:
            for result in pool.map(one, given):
                done.append(result)
                if on_graded is not None:
                    on_graded(len(done), len(given))
    with atomic_output(path) as file:
        file.writelines(_line(result) for result in done)
    return done


def graded_of(results: Iterable[Result]) -> list[Graded]:
    """What scores are computed from."""
    return [
        Graded(
            each.problem.id, each.repeat, each.grade.score if each.grade else None, each.answer.is_cut,
            each.answer.n_tokens, each.answer.seconds,
        )
        for each in results
    ]  # fmt: skip


def read_graded(path: Path) -> list[Graded]:
    """What scores are computed from, as an earlier run wrote it.

    Raises:
        OutputError: the results cannot be read.
    """
    try:
        with path.open("rb") as file:
            return [_graded(json.loads(line)) for line in file if line.endswith(b"\n")]
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}", hint="evaluate again") from None
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{path}: not the results of an evaluation", hint="evaluate again") from None


def _graded(line: Mapping[str, Any]) -> Graded:
    score = None if line["score"] is None else float(line["score"])
    return Graded(
        line["problem"], int(line["repeat"]), score, line["finish"] == "length", int(line["tokens"]), line["seconds"]
    )


def _read_grades(path: Path) -> dict[str, Grade]:
    """The grades that earlier runs gave, by `_key`. Torn lines and lines of something else are left out."""
    found: dict[str, Grade] = {}
    if path_kind(path) != "file":
        return found
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
            key = _key(value["problem"], value["repeat"], value["answer"], value["expected"])
            found[key] = Grade.from_json(value)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _key(problem: str, repeat: int, answer: str, expected: Any) -> str:
    """What a grade is of: if anything of it has changed, the answer is graded again."""
    return json.dumps([problem, repeat, answer, expected], sort_keys=True)


class _Notes:
    """Adds each grade to the results as it is given, so that a run which is killed has lost none."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Notes:
        try:
            self._file = self._path.open("ab")
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror or error}", hint="choose another -o") from None
        self._file.write(b"\n")  # ends a line that was torn
        return self

    def add(self, result: Result) -> None:
        self._file.write(_line(result))
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _line(result: Result) -> bytes:
    return json.dumps(result.as_json(), ensure_ascii=False).encode("utf-8", "replace") + b"\n"


@contextmanager
def _grader(task: Task) -> Iterator[Grader]:
    """The grader of a task."""
    if task.grader in _HERE:
        yield _HERE[task.grader]
    elif task.grader in _CAGED:
        yield _CAGED[task.grader]
    else:
        with closing(Judge()) as judge:
            yield partial(judge.grade, task.grader)


def _n_threads(task: Task) -> int:
    """Threads that grade: caged programs run beside each other, a judge reads one answer at a time."""
    return os.cpu_count() or 1 if task.grader in CODE_GRADERS else 1
