"""A task as data: where its problems are, how they are asked and graded, and what was published about MiMo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.documents import DocumentKind
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import name_hint
from mimo_gguf.core.paths import path_kind
from mimo_gguf.evaluation.making import MAKERS

_SHELF: Final = Path(__file__).with_name("tasks")
_HINT: Final = "correct the file at that place; mimo_gguf/evaluation/tasks has examples"
_DOCUMENT: Final = DocumentKind(UsageError, _HINT, most_bytes=250_000)
GRADERS: Final = ("choice", "function", "instructions", "math", "number", "programs", "spans")
CODE_GRADERS: Final = frozenset({"function", "programs"})  # they run what the model wrote
_ORIGINS: Final = ("repository", "package", "made", "file")


@dataclass(frozen=True, slots=True)
class Data:
    """Where problems come from: exactly one of the first four is given.

    Attributes:
        repository: a data set on the Hub.
        package: a Python package that ships the files.
        made: a generator of `making.MAKERS`.
        file: a file on this machine, relative to the task's own.
        revision: the commit in the repository; None for the newest one.
        files: the files in the repository or package. In a repository `*` stands for any characters, slashes as well.
        n_problems: how many there are; None if nobody has counted them.
        within: field -> first value, and the value before which the last one lies.
    """

    repository: str | None = None
    package: str | None = None
    made: str | None = None
    file: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    n_problems: int | None = None
    within: Mapping[str, tuple[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a row is what.

    Attributes:
        question: what is asked.
        context: the text that the question is about.
        id: what names the problem; without it, its place in the file.
        answer: the right answer; of a choice its letter; of spans as `spans.possible_answers` reads it.
        choices: a field with a list of choices, or several fields, of which the first is right.
        needs: further fields that the grader reads; of spans further right answers.
        later: large fields that the grader reads when it needs them.
    """

    question: str
    context: str | None = None
    id: str | None = None
    answer: str | None = None
    choices: str | tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    later: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Examples:
    """Questions with their answers that come before what is asked. They are the same ones for every problem.

    Attributes:
        files: where their rows are, in the repository or package of the problems.
        n: how many; they are chosen by their places.
        form: the text of one; `{question}`, `{context}` and `{answer}` stand for what its row has.
    """

    files: tuple[str, ...]
    n: int
    form: str


@dataclass(frozen=True, slots=True)
class Task:
    """One benchmark.

    Attributes:
        name: what it is called on the command line.
        title: what people call it.
        grader: one of `GRADERS`.
        prompt: the text that is asked; `{question}`, `{context}`, `{choices}`, `{how}` and `{examples}` stand for the
            problem's.
        max_tokens, temperature, top_p: how an answer is drawn.
        repeats: answers per problem, whose mean is the score.
        system: the system message.
        published: model -> its published score in percent.
        source: where these are published.
        examples: what `{examples}` stands for.
        folder: where the task's own file is.
    """

    name: str
    title: str
    grader: str
    prompt: str
    data: Data
    fields: Fields
    max_tokens: int
    repeats: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    system: str = ""
    published: Mapping[str, float] | None = None
    source: str | None = None
    examples: Examples | None = None
    folder: Path = _SHELF

    def published_for(self, model: str) -> float | None:
        """The published score in percent of the model whose name a file's name begins with; the longest name counts."""
        wanted = model.lower()
        names = [name for name in self.published or () if _begins(wanted, name.lower())]
        return (self.published or {})[max(names, key=len)] if names else None


def task_names() -> tuple[str, ...]:
    """The names of the tasks that are shipped, sorted."""
    return tuple(sorted(path.stem for path in _SHELF.glob("*.toml")))


def read_task(name: str) -> Task:
    """The task of this name, or in this TOML file.

    Raises:
        UsageError: there is no such task, or its file has a mistake.
    """
    if not name.lower().endswith(".toml"):
        if name not in task_names():
            raise UsageError(f"no task {name!r}", hint=name_hint(name, task_names()))
        return _parse(_SHELF / f"{name}.toml")
    if path_kind(name) != "file":
        raise UsageError(f"{name}: no such file", hint=f"give a TOML file, or one of: {', '.join(task_names())}")
    return _parse(Path(name))


def _parse(path: Path) -> Task:
    table = _DOCUMENT.read_toml(path)
    published = _part(table, "published", path)
    source = published.pop("source", None)
    data, names, shown = (_part(table, name, path) for name in ("data", "fields", "examples"))
    data["within"] = _tupled(_part(data, "within", path)) or None
    try:
        task = Task(
            name=path.stem, data=_made(Data, data), fields=_made(Fields, names), published=published, source=source,
            examples=_made(Examples, shown) if shown else None, folder=path.parent, **_tupled(table),
        )  # fmt: skip
    except TypeError as error:
        raise _DOCUMENT.fail(path, str(error).partition(") ")[2] or str(error)) from None
    _check(task, path)
    return task


def _part(table: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    part = table.pop(name, {})
    if not isinstance(part, dict):
        raise _DOCUMENT.fail(path, f"{name} is not a table")
    return part


def _made(kind: type[Any], table: dict[str, Any]) -> Any:
    return kind(**_tupled(table))


def _tupled(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _check(task: Task, path: Path) -> None:
    """Raises UsageError if what the table says cannot be a task."""
    for part in (task, task.data, task.fields, task.examples):
        if part is not None:
            _check_types(part, path)
    for is_broken, words in _RULES:
        if is_broken(task):
            raise _DOCUMENT.fail(path, words.format(task=task))


def _check_types(part: Any, path: Path) -> None:
    """Raises UsageError if a value has another type than its dataclass says."""
    for each in fields(part):
        value = getattr(part, each.name)
        fits, words = _TYPES.get(str(each.type), (None, ""))
        if fits is not None and not fits(value):
            raise _DOCUMENT.fail(path, f"{each.name} is {value!r:.60}, not {words}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_is_text, value))


def _are_scores(value: Any) -> bool:
    return value is None or all(map(_is_number, value.values()))


def _are_bounds(value: Any) -> bool:
    return value is None or all(_are_texts(bounds) and len(bounds) == 2 for bounds in value.values())


# what may not be -> what is said of it
_RULES: Final[tuple[tuple[Callable[[Task], bool], str], ...]] = (
    (lambda task: task.grader not in GRADERS, "grader is {task.grader!r}, not one of " + ", ".join(GRADERS)),
    (
        lambda task: sum(getattr(task.data, name) is not None for name in _ORIGINS) != 1,
        "[data] needs exactly one of " + ", ".join(_ORIGINS),
    ),
    (
        lambda task: task.data.made is not None and task.data.made not in MAKERS,
        "made is {task.data.made!r}, not one of " + ", ".join(MAKERS),
    ),
    (lambda task: "{question}" not in task.prompt, "prompt has no {{question}}"),
    (
        lambda task: ("{examples}" in task.prompt) != (task.examples is not None),
        "[examples] and {{examples}} in prompt need each other",
    ),
    (
        lambda task: task.examples is not None and task.data.made is not None,
        "[examples] cannot be of data that are made",
    ),
    (lambda task: task.examples is not None and task.examples.n < 1, "n in [examples] is 1 at least"),
    (
        lambda task: task.grader in ("math", "number", "spans") and task.fields.answer is None,
        "grader {task.grader} needs answer in [fields]",
    ),
    (
        lambda task: task.grader == "choice" and task.fields.choices is None,
        "grader choice needs choices in [fields]",
    ),
    (lambda task: task.max_tokens < 1 or task.repeats < 1, "max_tokens and repeats are 1 at least"),
)

# how a dataclass writes a type -> whether a value has it, and what it is called
_TYPES: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "str": (_is_text, "a text"),
    "str | None": (lambda value: value is None or _is_text(value), "a text"),
    "int": (_is_whole, "a whole number"),
    "int | None": (lambda value: value is None or _is_whole(value), "a whole number"),
    "float": (_is_number, "a number"),
    "tuple[str, ...]": (_are_texts, "a list of texts"),
    "str | tuple[str, ...] | None": (lambda value: value is None or _is_text(value) or _are_texts(value), "texts"),
    "Mapping[str, float] | None": (_are_scores, "numbers"),
    "Mapping[str, tuple[str, str]] | None": (_are_bounds, "two texts for each field"),
}


def _begins(model: str, name: str) -> bool:
    """Whether a file's name begins with a model's name, up to a dash, a dot or the end."""
    return model == name or model.startswith((f"{name}-", f"{name}.", f"{name}_"))
