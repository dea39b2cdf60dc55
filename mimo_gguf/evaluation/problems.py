"""Problems of a task: what is asked, and by what an answer is graded. The same rows give the same problems."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from mimo_gguf.batch.rows import name_of
from mimo_gguf.core.errors import UsageError
from mimo_gguf.evaluation.examples import examples_text
from mimo_gguf.evaluation.filling import filled
from mimo_gguf.evaluation.rows_of_data import Files, Place, answers_in, field_of, find_files, read_row_again, read_rows
from mimo_gguf.evaluation.task import Task

_LETTERS: Final = string.ascii_uppercase
_SEEDS: Final = 1 << 31
_AS_METHOD: Final = "Complete this class, and write nothing that runs:\n\n{code}"
_AS_PROGRAM: Final = "The program reads from standard input and prints the answer."


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        id: what names it within its task.
        prompt: the text that is asked.
        expected: what the grader compares with, as JSON can hold it.
        place: where its row is.
        later: large fields that are read again from there.
    """

    id: str
    prompt: str
    expected: Any
    place: Place
    later: tuple[str, ...] = ()

    def wholly_expected(self) -> Any:
        """What the grader compares with, large fields included. Raises UsageError if the row is gone."""
        if not self.later:
            return self.expected
        row = read_row_again(self.place)
        return self.expected | {name: row.get(name) for name in self.later}


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems of a task that are asked.

    Attributes:
        n_all: how many the task has.
        commit: the commit of the data on the Hub; None for other data.
    """

    chosen: tuple[Problem, ...]
    n_all: int
    commit: str | None = None


def read_problems(task: Task, *, given: Path | None = None, limit: int | None = None) -> Problems:
    """The problems of a task, or `limit` of them.

    Those are chosen by their names, evenly from the whole: the same for every model, and 100 are among 200.

    Args:
        given: a file whose rows have the fields of the task's data, read instead.

    Raises:
        UsageError, HubError, MimoGgufError: as `find_files` and `read_rows`; a row lacks a field, or a name is used
            twice; or there are not as many as the task says.
    """
    files = find_files(task, given)
    problems = _read(task, files)
    wanted = task.data.n_problems if given is None else None
    if not problems or (wanted is not None and len(problems) != wanted):
        raise UsageError(
            f"{task.name}: {len(problems)} problems found, not {wanted or 'any'}",
            hint="the data have changed; give the revision that you mean in a task of your own, or --data",
        )
    chosen = sorted(problems, key=lambda problem: name_of(f"{task.name}/{problem.id}"))[:limit]
    kept = {problem.id for problem in chosen}
    return Problems(tuple(each for each in problems if each.id in kept), len(problems), files.commit)


def _read(task: Task, files: Files) -> list[Problem]:
    problems: dict[str, Problem] = {}
    examples = examples_text(task)
    for place, row in read_rows(task.data, files):
        if not _is_within(task, row, place):
            continue
        problem = _problem(task, row, place, examples)
        if problem.id in problems:
            raise UsageError(
                f"{place}: the id {problem.id!r:.60} is that of row {problems[problem.id].place.number}, too",
                hint="each problem needs an id of its own",
            )
        problems[problem.id] = problem
    return list(problems.values())


def _is_within(task: Task, row: Mapping[str, Any], place: Place) -> bool:
    bounds = (task.data.within or {}).items()
    return all(first <= str(field_of(row, name, place)) < end for name, (first, end) in bounds)


def _problem(task: Task, row: Mapping[str, Any], place: Place, examples: str) -> Problem:
    names = task.fields
    name = str(place.number) if names.id is None else str(field_of(row, names.id, place))
    parts = {"question": str(field_of(row, names.question, place)), "choices": "", "how": "", "examples": examples}
    if names.context is not None:
        parts["context"] = str(field_of(row, names.context, place))
    expected: Any = None
    if task.grader == "choice":
        choices, letter = _choices(task, row, place, name)
        parts["choices"] = "\n".join(f"{_LETTERS[n]}. {choice}" for n, choice in enumerate(choices))
        expected = {"letter": letter, "n_choices": len(choices)}
    elif task.grader == "spans":
        expected = answers_in(row, (str(names.answer), *names.needs), place)
    elif names.answer is not None:
        expected = str(field_of(row, names.answer, place))
    else:
        expected = {each: field_of(row, each, place) for each in names.needs}
        for each in names.later:
            field_of(row, each, place)
    if task.grader == "programs":
        code = str(expected.get("starter_code") or "")
        parts["how"] = _AS_METHOD.replace("{code}", code) if code else _AS_PROGRAM
    return Problem(name, filled(task.prompt, parts), expected, place, names.later)


def _choices(task: Task, row: Mapping[str, Any], place: Place, name: str) -> tuple[list[str], str]:
    """The choices in the order in which they are shown, and the letter of the right one."""
    names = task.fields.choices
    if isinstance(names, tuple):
        shown = [str(field_of(row, each, place)).strip() for each in names]
        right = shown[0]
        _shuffle(shown, name)
        return shown, _LETTERS[shown.index(right)]
    found = field_of(row, str(names), place)
    if not isinstance(found, Sequence) or isinstance(found, str) or not 2 <= len(found) <= len(_LETTERS):
        raise UsageError(f"{place}: {names!r} is not a list of choices", hint="two choices at least, 26 at most")
    letter = str(field_of(row, str(task.fields.answer), place)).strip().upper()
    if letter not in _LETTERS[: len(found)]:
        raise UsageError(f"{place}: the answer {letter!r:.40} is not one of {len(found)} choices", hint="give a letter")
    return [str(each).strip() for each in found], letter


def _shuffle(values: list[str], name: str) -> None:
    """Shuffles in place, always in the same way for one name."""
    random = Random(name_of(name))
    for last in range(len(values) - 1, 0, -1):
        other = int(random.random() * (last + 1))
        values[last], values[other] = values[other], values[last]


# ---- rows of a batch


def custom_id(task: Task, problem: Problem, repeat: int) -> str:
    """What names an answer: the task, the problem, and which of the repeats, from 1 on."""
    return f"{task.name}/{problem.id}/{repeat}"


def row_of(task: Task, problem: Problem, repeat: int, model: str | None = None) -> dict[str, Any]:
    """The request of an answer, in the form of a batch. Its seed depends on nothing but its name.

    Args:
        model: the model's name for a server; None for a file that is loaded here.
    """
    name = custom_id(task, problem, repeat)
    body: dict[str, Any] = {} if model is None else {"model": model}
    body |= {
        "messages": [{"role": "system", "content": task.system}, {"role": "user", "content": problem.prompt}],
        "temperature": task.temperature,
        "top_p": task.top_p,
        "max_tokens": task.max_tokens,
        "seed": name_of(name) % _SEEDS,
    }
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def rows_text(task: Task, problems: Sequence[Problem], model: str | None = None) -> bytes:
    """All requests of a task, one a line: every problem once, then every one again."""
    rows = (row_of(task, each, repeat, model) for repeat in range(1, task.repeats + 1) for each in problems)
    return b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for row in rows)
