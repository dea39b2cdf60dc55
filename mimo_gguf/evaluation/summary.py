"""The summary of a model's evaluation: a small JSON file in the folder of its answers, and folders read again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.documents import DocumentKind
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.output_file import atomic_output
from mimo_gguf.core.paths import path_kind
from mimo_gguf.core.version import __version__
from mimo_gguf.evaluation.grading import read_graded
from mimo_gguf.evaluation.scores import Comparison, Graded, Score, compare
from mimo_gguf.evaluation.task import Task

NAME: Final = "summary.json"
RESULTS: Final = "results.jsonl"
_FORMAT: Final = "mimo-gguf evaluation 1"
_DOCUMENT: Final = DocumentKind(UsageError, "give the folder of an evaluation, or its summary.json")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What came of one task.

    Attributes:
        title: what people call the task.
        n_all: problems that the task has; the score may be of some of them.
        n_asked: answers that were asked for.
        repeats: answers for each problem.
        published: the published score in percent, None if there is none.
        rules: how answers were drawn, and where the problems are from.
        base: the name of the model that it was compared with; None without one.
        comparison: with that model; None without one, or if they have too little in common.
    """

    title: str
    score: Score
    n_all: int
    n_asked: int
    repeats: int
    published: float | None
    rules: Mapping[str, Any]
    base: str | None = None
    comparison: Comparison | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every answer that was asked for is there."""
        return self.score.n_answers == self.n_asked

    def as_json(self) -> dict[str, Any]:
        """The result as a JSON document."""
        return {
            "title": self.title, **self.score.as_json(), "n_all": self.n_all, "n_asked": self.n_asked,
            "repeats": self.repeats, "published": self.published, "rules": dict(self.rules), "base": self.base,
            "comparison": self.comparison.as_json() if self.comparison else None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """A model's results.

    Attributes:
        model: its name.
        tasks: name -> result.
        folder: where its answers are.
    """

    model: str
    tasks: Mapping[str, TaskResult]
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """The summary as a JSON document."""
        tasks = {name: result.as_json() for name, result in self.tasks.items()}
        return {
            "format": _FORMAT, "version": __version__, "model": self.model, "tasks": tasks
        }  # fmt: skip

    def graded(self, task: str) -> list[Graded]:
        """The graded answers to a task. Raises OutputError if they are gone."""
        return read_graded(self.folder / task / RESULTS)

    def beside(self, base: Summary) -> Summary:
        """This summary with a comparison for each task that both have. Raises OutputError if answers are gone."""
        tasks = {
            name: replace(result, base=base.model, comparison=compare(self.graded(name), base.graded(name)))
            if name in base.tasks
            else result
            for name, result in self.tasks.items()
        }
        return replace(self, tasks=tasks)

    def write(self) -> None:
        """Writes the summary into its folder, with the tasks that an earlier one has. Raises OutputError."""
        path = self.folder / NAME
        known = read_summary(path).tasks if path_kind(path) == "file" else {}
        both = replace(self, tasks={**known, **self.tasks})
        with atomic_output(path) as file:
            file.write(json.dumps(both.as_json(), indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def read_summary(path: Path) -> Summary:
    """The summary in a file, or in a folder.

    Raises:
        UsageError: there is none, or it is of something else.
    """
    place = path / NAME if path_kind(path) == "folder" else path
    if path_kind(place) != "file":
        raise UsageError(f"{path}: no {NAME} there", hint="give the folder of an evaluation that has come to its end")
    found = _DOCUMENT.read_json(place)
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise UsageError(f"{place}: not the summary of an evaluation", hint=_DOCUMENT.hint)
    try:
        tasks = {name: _result(value) for name, value in found["tasks"].items()}
        return Summary(str(found["model"]), tasks, place.parent)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(f"{place}: the summary is broken", hint="run the evaluation again") from None


def _result(value: Mapping[str, Any]) -> TaskResult:
    comparison = value.get("comparison")
    return TaskResult(
        str(value["title"]), Score.from_json(value), int(value["n_all"]), int(value["n_asked"]), int(value["repeats"]),
        value.get("published"), value["rules"], value.get("base"), Comparison(**comparison) if comparison else None,
    )  # fmt: skip


def rules_of(task: Task, commit: str | None) -> dict[str, Any]:
    """How a task's answers were drawn and graded, and where its problems are from."""
    data = task.data
    origin = data.repository or data.package or data.made or data.file
    rules = {"temperature": task.temperature, "top_p": task.top_p, "max_tokens": task.max_tokens}
    return rules | {"grader": task.grader, "data": origin, "commit": commit, "published_by": task.source}
