"""How an evaluation is shown: the tasks, what will be asked, how far it is, and the table of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from mimo_gguf.cli import ui
from mimo_gguf.cli.batch_screen import BatchScreen
from mimo_gguf.cli.loading import loading, print_advice
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import counted

if TYPE_CHECKING:
    from mimo_gguf.batch.progress import BatchProgress
    from mimo_gguf.evaluation.run import Evaluation
    from mimo_gguf.evaluation.scores import Comparison
    from mimo_gguf.evaluation.summary import Summary, TaskResult
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.server.ray_cluster import Pool

_COLUMNS: Final = ("task", "answers", "score", "published", "cut off", "tokens", "seconds")
_SHOWN_EVERY: Final = 100  # answers that are graded


class EvaluationScreen:
    """Follows an evaluation: for each task the rows as a batch shows them, and then how many answers are graded."""

    def __init__(self, *, quiet: bool, gpu_layers: int | None = None) -> None:
        """Makes the screen; if `quiet`, nothing is shown but what breaks the evaluation off.

        Args:
            gpu_layers: what the user decided about layers on the GPU, for advice.
        """
        self._quiet, self._gpu_layers = quiet, gpu_layers
        self._loading = ExitStack()
        self._batch = BatchScreen(quiet=quiet)

    def __enter__(self) -> EvaluationScreen:
        self._batch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loading.close()
        self._batch.__exit__(kind, error, trace)

    def begin_task(self, model: str, title: str) -> None:
        """Notes which task of which model begins."""
        if not self._quiet:
            ui.print_note(f"{title}, {model}")

    def load(self, fit: FitPlan) -> None:
        """Shows the plan, and that the model is being loaded."""
        shown = not self._quiet
        self._loading.enter_context(loading(shown=shown, alive=shown))(fit)
        print_advice(fit, self._gpu_layers)

    def show_pool(self, pool: Pool) -> None:
        """Shows the actors on a cluster."""
        if not self._quiet:
            ui.print_note(str(pool))

    def begin(self, progress: BatchProgress) -> None:
        """Notes that the first row is about to be answered."""
        self._loading.close()
        self._batch.begin(progress)

    def show(self, progress: BatchProgress) -> None:
        """Shows how many rows are answered."""
        self._batch.show(progress)

    def show_graded(self, n: int, n_all: int) -> None:
        """Shows now and then how many answers are graded."""
        if n == 1:
            self._batch.erase()
        if not self._quiet and n % _SHOWN_EVERY == 0 and n < n_all:
            ui.print_note(f"{n} of {n_all} answers graded")


def print_tasks(*, as_json: bool) -> None:
    """Prints the tasks that are shipped."""
    from mimo_gguf.evaluation.task import read_task, task_names

    tasks = [read_task(name) for name in task_names()]
    if as_json:
        ui.print_json(
            [
                {"name": each.name, "title": each.title, "n_problems": each.data.n_problems, "repeats": each.repeats,
                 "max_tokens": each.max_tokens, "grader": each.grader, "published": dict(each.published or {})}
                for each in tasks
            ]
        )  # fmt: skip
        return
    rows = [
        (each.name, str(each.data.n_problems or "?"), str(each.repeats), str(each.max_tokens), each.grader,
         _percent((each.published or {}).get("MiMo-7B-RL")))
        for each in tasks
    ]  # fmt: skip
    ui.print_table(("task", "problems", "repeats", "tokens", "grader", "MiMo-7B-RL"), rows)


def print_plan(asked: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints what would be asked, with the first prompt of each task."""
    from mimo_gguf.evaluation.run import plan_evaluation

    plans = plan_evaluation(**asked)
    if as_json:
        ui.print_json({plan.task.name: plan.as_json() for plan in plans})
        return
    for plan in plans:
        task, n = plan.task, len(plan.problems.chosen)
        ui.print_line(task.title, style="heading")
        some = f" of {plan.problems.n_all}" if n < plan.problems.n_all else ""
        ui.print_field("problems", f"{n}{some}, {counted(task.repeats, 'answer')} each: {plan.n_answers} answers")
        ui.print_field(
            "drawn", f"temperature {task.temperature:g}, top-p {task.top_p:g}, {task.max_tokens} tokens at most"
        )
        ui.print_field("graded by", task.grader)
        ui.print_field("first", plan.problems.chosen[0].prompt.replace("\n", " ")[:300])


def show_folders(folders: Sequence[Path], plot: Path | None, *, as_json: bool) -> None:
    """Prints and draws the results in folders. All but the first are compared with it.

    Raises:
        UsageError: no folder, or one without a summary.
        OutputError: its results are gone, or the picture cannot be written.
    """
    from mimo_gguf.evaluation.summary import read_summary

    if not folders:
        raise UsageError("missing argument 'MODEL...'", hint="mimo-gguf evaluate --show evaluation/*")
    found = [read_summary(each) for each in folders]
    summaries = [found[0], *(each.beside(found[0]) for each in found[1:])]
    if plot is not None:
        _plot(summaries, plot)
    if as_json:
        ui.print_json([each.as_json() for each in summaries])
        return
    print_summaries(summaries)


def print_evaluation(found: Evaluation, plot: Path | None, *, as_json: bool) -> None:
    """Prints and draws what came of an evaluation."""
    summaries = [found.base, found.model] if found.base else [found.model]
    if plot is not None:
        _plot(summaries, plot)
    if as_json:
        ui.print_json(found.as_json())
        return
    print_summaries(summaries)


def print_summaries(summaries: Sequence[Summary]) -> None:
    """Prints a table for each model, and below how it differs from the base."""
    for number, summary in enumerate(summaries):
        if number:
            ui.print_line()
        ui.print_line(summary.model, style="good")
        ui.print_table(_COLUMNS, [_row(result) for result in summary.tasks.values()])
        for result in summary.tasks.values():
            if result.comparison is not None:
                ui.print_field(ui.harmless(result.title), compared(result.comparison, str(result.base)), width=14)
        for result in summary.tasks.values():
            if note := _note(result):
                ui.print_field(ui.harmless(result.title), note, width=14, style="warning")


def compared(found: Comparison, base: str) -> str:
    """A comparison in words."""
    points, low, high = (100 * value for value in (found.difference, found.low, found.high))
    return (
        f"{points:+.1f} points against {base} (95 %: {low:+.1f} to {high:+.1f}); "
        f"{found.n_better} of {found.n_problems} problems better, {found.n_worse} worse, p = {found.p:.2g}"
    )


def _row(result: TaskResult) -> tuple[str, ...]:
    score = result.score
    error = "" if score.error is None else f" ± {100 * score.error:.1f}"
    return (
        result.title, f"{score.n_problems} x {result.repeats}", _percent(score.score, 100) + error,
        _percent(result.published), f"{score.n_cut}", "-" if score.tokens is None else f"{score.tokens:.0f}",
        "-" if score.seconds is None else f"{score.seconds:.1f}",
    )  # fmt: skip


def _note(result: TaskResult) -> str | None:
    """What keeps a score from being the task's."""
    parts = []
    if result.score.n_failed:
        parts.append(f"{counted(result.score.n_failed, 'row')} failed; --retry-errors asks them again")
    missing = result.n_asked - result.score.n_answers - result.score.n_failed
    if missing > 0:
        parts.append(f"{missing} of {result.n_asked} answers are not there yet")
    return "; ".join(parts) or None


def _percent(value: float | None, times: float = 1) -> str:
    return "-" if value is None else f"{times * value:.1f}"


def _plot(summaries: Sequence[Summary], path: Path) -> None:
    from mimo_gguf.cli.evaluate_plot import draw

    draw(summaries, path)
