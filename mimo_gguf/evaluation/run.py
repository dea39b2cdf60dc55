"""The verb `evaluate`: problems become rows of a batch, the batch machinery answers them, graders judge the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.output_file import atomic_output, make_folder
from mimo_gguf.core.paths import path_kind
from mimo_gguf.evaluation.answers import read_answers
from mimo_gguf.evaluation.grading import OnGraded, check_grader, grade_all, graded_of
from mimo_gguf.evaluation.machines import Here, Listeners, Machine, OnTask, base_of, machine_of
from mimo_gguf.evaluation.problems import Problems, read_problems, rows_text
from mimo_gguf.evaluation.scores import score_of
from mimo_gguf.evaluation.summary import RESULTS, Summary, TaskResult, rules_of
from mimo_gguf.evaluation.task import Task, read_task, task_names

if TYPE_CHECKING:
    from mimo_gguf.batch.progress import BatchProgress
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.server.ray_cluster import Pool

FOLDER: Final = "evaluation"
_ROWS: Final = "rows.jsonl"
_ANSWERS: Final = "answers.jsonl"


@dataclass(frozen=True, slots=True)
class AskedTask:
    """A task and the problems of it that are asked."""

    task: Task
    problems: Problems

    @property
    def n_answers(self) -> int:
        """The answers that are asked for."""
        return self.task.repeats * len(self.problems.chosen)

    def as_json(self) -> dict[str, Any]:
        """What will be asked as a JSON document."""
        rules = rules_of(self.task, self.problems.commit)
        counts = {"n_problems": len(self.problems.chosen), "n_all": self.problems.n_all}
        return {"title": self.task.title, "repeats": self.task.repeats, "n_answers": self.n_answers, **counts, **rules}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of an evaluation: the model's summary, compared with the base's if there is one."""

    model: Summary
    base: Summary | None = None

    def as_json(self) -> dict[str, Any]:
        """The evaluation as a JSON document."""
        return {"model": self.model.as_json(), "base": self.base.as_json() if self.base else None}


@dataclass(frozen=True, slots=True)
class _Wishes:
    """What was asked for, besides models and how they are run."""

    tasks: tuple[AskedTask, ...]
    folder: Path
    retry_errors: bool
    force: bool
    so_far: bool
    tell: Listeners


def evaluate(
    model: str | Path | None = None, *, task: str | Sequence[str], base: str | Path | None = None,
    url: str | None = None, out: str | Path = FOLDER, limit: int | None = None, repeats: int | None = None,
    temperature: float | None = None, max_tokens: int | None = None, data: str | Sequence[str] = (),
    allow_code: bool = False, so_far: bool = False, ctx: int | None = None, parallel: int | None = None,
    mtp: bool | None = None, draft: int = 1, always_draft: bool = False, threads: int | None = None,
    gpu_layers: int | None = None, kv_type: str | None = None, ubatch: int | None = None, exact: bool = False,
    retry_errors: bool = False, force: bool = False, ray: str | None = None, workers: int | None = None,
    cpus_per_worker: int | None = None, gpus_per_worker: int | None = None, on_task: OnTask | None = None,
    on_plan: Callable[[FitPlan], None] | None = None, on_pool: Callable[[Pool], None] | None = None,
    on_start: Callable[[BatchProgress], None] | None = None,
    on_progress: Callable[[BatchProgress], None] | None = None, on_graded: OnGraded | None = None,
    find: Callable[..., Path] | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluates a model with benchmarks under the rules of MiMo's report. A run that was stopped goes on.

    Args:
        model: a model as for `batch`; with `url` the name that the server gives it, None if it has only one.
        task: names of shipped tasks, or TOML files of your own.
        base: a model that is asked the same with the same seeds, or the folder of an evaluation of it.
        url: a server that speaks OpenAI's API; it answers instead of a file.
        out: the folder of all evaluations; each model has a folder in it.
        limit: problems per task, chosen evenly by their names; None for all.
        repeats, temperature, max_tokens: replace those of the tasks.
        data: `TASK=FILE` for each task whose problems are read from a file of yours.
        allow_code: lets programs run that the model writes.
        so_far: grades the answers that are there, and asks for none.
        retry_errors, force: ask again what failed in an earlier run; start over.
        on_task, on_graded: called before each task of a model, and after each grade with how many of how many.
        others: as for `batch`.

    Raises:
        UsageError: no such task, or a mistake in it or in the data; code that is not allowed to run.
        HubError: the data cannot be downloaded.
        OutputError: a file cannot be written, or the folder holds answers of another model.
        MimoGgufError: a library is missing; or as `batch`.
    """
    tell = Listeners(on_task or (lambda model, title: None), on_plan, on_pool, on_start, on_progress, on_graded)
    how = {
        "ctx": ctx, "parallel": parallel, "mtp": mtp, "draft": draft, "always_draft": always_draft, "threads": threads,
        "gpu_layers": gpu_layers, "kv_type": kv_type, "ubatch": ubatch, "exact": exact, "force": force, "ray": ray,
        "workers": workers, "cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker, "find": find,
    }  # fmt: skip
    machine, other = machine_of(model, url, how, tell), base_of(base, how, tell)
    asked = plan_evaluation(
        task, limit=limit, repeats=repeats, temperature=temperature, max_tokens=max_tokens, data=data,
        allow_code=allow_code,
    )  # fmt: skip
    return _measure_both(machine, other, _Wishes(asked, Path(out), retry_errors, force, so_far, tell))


def plan_evaluation(
    task: str | Sequence[str], *, limit: int | None = None, repeats: int | None = None,
    temperature: float | None = None, max_tokens: int | None = None, data: str | Sequence[str] = (),
    allow_code: bool = False,
) -> tuple[AskedTask, ...]:  # fmt: skip
    """Reads tasks and their problems, and checks that answers can be graded here. Nothing is asked.

    Raises:
        UsageError, HubError, MimoGgufError: as `evaluate`.
    """
    names = (task,) if isinstance(task, str) else tuple(task)
    if not names:
        raise UsageError("no task is given", hint=f"--task, one of: {', '.join(task_names())}")
    tasks = [_changed(read_task(name), repeats, temperature, max_tokens) for name in dict.fromkeys(names)]
    for each in tasks:
        check_grader(each, allow_code=allow_code)
    given = _given((data,) if isinstance(data, str) else data, tasks)
    return tuple(AskedTask(each, read_problems(each, given=given.get(each.name), limit=limit)) for each in tasks)


def _changed(task: Task, repeats: int | None, temperature: float | None, max_tokens: int | None) -> Task:
    wanted = {"repeats": repeats, "temperature": temperature, "max_tokens": max_tokens}
    return replace(task, **{name: value for name, value in wanted.items() if value is not None})  # type: ignore[arg-type]


def _given(data: Sequence[str], tasks: Sequence[Task]) -> dict[str, Path]:
    """Task -> the user's file with its problems. Raises UsageError for a task that is not asked."""
    found: dict[str, Path] = {}
    names = {task.name for task in tasks}
    for text in data:
        name, mark, path = text.partition("=")
        if not mark or name not in names:
            raise UsageError(f"--data {text}: not TASK=FILE of a task that is asked", hint="--data math500=my.jsonl")
        found[name] = Path(path)
    return found


def _measure_both(machine: Machine, other: Machine | Summary | None, wishes: _Wishes) -> Evaluation:
    """Asks the base if it is a model, and then the model, whose summary is written with the comparison."""
    machine = machine.ready()
    if isinstance(other, Here):
        other = other.ready()
        if other.name == machine.name:
            raise UsageError(f"model and base are both called {machine.name}", hint="give one of them another name")
    base = other if other is None or isinstance(other, Summary) else _measure(other, wishes)
    summary = _measure(machine, wishes)
    if base is not None:
        summary = summary.beside(base)
        if not wishes.so_far:
            summary.write()
    return Evaluation(summary, base)


def _measure(machine: Machine, wishes: _Wishes) -> Summary:
    """Asks all tasks of one model, and writes its summary."""
    folder = wishes.folder / machine.name
    results: dict[str, TaskResult] = {}
    for asked in wishes.tasks:
        wishes.tell.on_task(machine.name, asked.task.title)
        results[asked.task.name] = _measure_task(machine, asked, folder / asked.task.name, wishes)
        summary = Summary(machine.name, dict(results), folder)
        if not wishes.so_far:
            summary.write()  # a later task may be what breaks off
    return summary


def _measure_task(machine: Machine, asked: AskedTask, folder: Path, wishes: _Wishes) -> TaskResult:
    task, problems = asked.task, asked.problems
    answers = folder / _ANSWERS
    if not wishes.so_far:
        make_folder(folder)
        with _written(folder / _ROWS, rows_text(task, problems.chosen, machine.served)) as rows:
            machine.answer(rows, answers, retry_errors=wishes.retry_errors, force=wishes.force)
    elif path_kind(folder) != "folder":
        raise UsageError(f"{folder}: nothing was answered yet", hint="leave --so-far out")
    results = grade_all(task, problems.chosen, read_answers(answers), folder / RESULTS, wishes.tell.on_graded)
    return TaskResult(
        task.title, score_of(graded_of(results)), problems.n_all, asked.n_answers, task.repeats,
        task.published_for(machine.name), rules_of(task, problems.commit),
    )  # fmt: skip


@contextmanager
def _written(path: Path, rows: bytes) -> Iterator[Path]:
    """Writes the rows. If the block refuses them, because others have been answered, the others come back."""
    before = path.read_bytes() if path_kind(path) == "file" else None
    if before != rows:
        with atomic_output(path) as file:
            file.write(rows)
    try:
        yield path
    except UsageError:
        if before is not None and before != rows:
            with atomic_output(path) as file:
                file.write(before)
        raise
