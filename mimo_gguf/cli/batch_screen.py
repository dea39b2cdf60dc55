"""How a batch is shown: its plan, a line that follows the rows, and its end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final

from mimo_gguf.cli import ui
from mimo_gguf.cli.live_rows import LiveRows, dimmed
from mimo_gguf.core.units import counted, format_clock, format_duration

if TYPE_CHECKING:
    from mimo_gguf.batch.progress import BatchProgress
    from mimo_gguf.server.offline import BatchPlan

_DRAWN_EVERY_S: Final = 0.2
_LINE_EVERY_S: Final = 10.0


class BatchScreen:
    """Follows the rows: a line that is redrawn on a terminal, one every few seconds in a log."""

    def __init__(self, *, quiet: bool) -> None:
        """Makes the screen; if `quiet`, nothing is shown but what breaks the batch off."""
        self._quiet = quiet
        self._live = LiveRows(ui.err)
        self._progress: BatchProgress | None = None
        self._shown_s = 0.0

    def __enter__(self) -> BatchScreen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.erase()
        if isinstance(error, KeyboardInterrupt) and self._progress is not None:
            ui.print_note(f"stopped at {rows_of(self._progress)}; the same command goes on from here")

    def erase(self) -> None:
        """Takes the line away that follows the rows."""
        self._live.erase()

    def begin(self, progress: BatchProgress) -> None:
        """Notes that the first row is about to be answered."""
        self._progress, self._shown_s = progress, time.monotonic()
        if progress.n_earlier and not self._quiet:
            ui.print_note(f"{rows_of(progress)} answered by earlier runs")

    def show(self, progress: BatchProgress) -> None:
        """Shows how far the batch is, if that was not shown just now."""
        now = time.monotonic()
        if self._quiet or now - self._shown_s < (_DRAWN_EVERY_S if self._live.possible else _LINE_EVERY_S):
            return
        self._shown_s = now
        if self._live.possible:
            self._live.draw(dimmed(progress_line(progress), ui.err))
        else:
            ui.print_note(progress_line(progress))


def progress_line(progress: BatchProgress) -> str:
    """How far a batch is, in one line: `1234 of 10000 rows, 2 failed · 345 tok/s · drafts 87% right · 1:05 left`."""
    parts = [rows_of(progress) + (f", {progress.n_failed} failed" if progress.n_failed else "")]
    parts.append(f"{progress.tokens_per_s:.1f} tok/s")
    if progress.acceptance is not None:
        parts.append(f"drafts {progress.acceptance:.0%} right")
    if progress.left_s is not None:
        parts.append(f"{format_clock(progress.left_s)} left")
    return " · ".join(parts)


def rows_of(progress: BatchProgress) -> str:
    """The rows that are done: `3 of 10 rows`, or `3 rows` of a pipe."""
    whole = "" if progress.n_rows is None else f" of {progress.n_rows}"
    return f"{progress.n_done}{whole} {'row' if (progress.n_rows or progress.n_done) == 1 else 'rows'}"


def print_plan(plan: BatchPlan) -> None:
    """Prints on stdout what a batch would do."""
    from mimo_gguf.batch.survey import why

    if plan.survey is None:
        ui.print_field("rows", "from a pipe")
    else:
        ui.print_field("rows", f"{plan.survey.n_rows}, {plan.n_earlier} of them answered already")
        if plan.survey.refused is not None:
            row, result = plan.survey.refused
            text = f"{plan.survey.n_refused} will fail; line {row.number}: {why(result)}"
            ui.print_field("refused", text, style="warning")
    if plan.n_failed:
        ui.print_field("failed", f"{counted(plan.n_failed, 'row')} in earlier runs; --retry-errors repeats them")
    settings, lines = plan.fit.settings, plan.fit.summary()
    ui.print_field("at a time", f"{counted(settings.n_seq_max, 'row')} of up to {settings.n_ctx_seq} tokens")
    ui.print_field("plan", lines[0])
    ui.print_field("memory", lines[1])


def print_end(done: BatchProgress, out: str, *, as_json: bool) -> None:
    """Prints the figures of a finished batch: on stdout, unless the answers went there."""
    is_piped = out == "-"
    if as_json and not is_piped:
        ui.print_json(done.as_json())
        return
    failed = f", {done.n_failed} of them failed" if done.n_failed else ""
    text = f"{rows_of(done)}{failed}; {counted(done.n_generated, 'token')} in {format_duration(done.seconds)}"
    text += f", {done.tokens_per_s:.1f} tok/s" if done.n_new else ""
    text += f", drafts {done.acceptance:.0%} right" if done.acceptance is not None else ""
    if is_piped:
        ui.print_note(text)
        return
    ui.print_field("answers", out)
    ui.print_field("rows", text)
    if done.n_failed:
        ui.print_field("failed", "each has a line with its error; --retry-errors answers them again")
