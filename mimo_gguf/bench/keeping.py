"""Keeps a benchmark's speeds, so that `fit`, `gpus` and `advise` show what was measured on this machine."""

from __future__ import annotations

import datetime
import statistics
from pathlib import Path

from mimo_gguf.bench.run import BenchOptions, BenchReport
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.version import LLAMA_CPP_COMMIT
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.speeds import plan_place
from mimo_gguf.hardware.kept_speeds import KeptSpeed, check_can_keep, keep_speed, shapes_of
from mimo_gguf.llama.api import default_threads


def check_is_worth_keeping(options: BenchOptions, n_threads: int | None, *, exact: bool) -> None:
    """Raises an error if a benchmark's speeds could not be kept, or would not be those of a usual run.

    Raises:
        UsageError: of an exact session, of another number of threads, or not of plain generation.
        OutputError: the folder cannot be written.
    """
    if exact:
        raise UsageError("--save keeps the speed of usual runs, not of exact ones", hint="leave --exact or --save out")
    if n_threads is not None and n_threads != default_threads():
        raise UsageError(
            f"--save keeps the speed of usual runs, which have {default_threads()} threads",
            hint="leave --threads or --save out",
        )
    if 0 not in options.drafts:
        raise UsageError("--save needs plain generation, too", hint="--drafts 0,1,2,3")
    check_can_keep()


def kept_speed(report: BenchReport, plan: FitPlan, date: datetime.date | None = None) -> KeptSpeed:
    """The speeds of a finished benchmark: the geometric means over its texts, with the best number of drafts."""
    means: dict[int, float] = {}
    for n_draft in {figure.n_draft for figure in report.generation}:
        means[n_draft] = statistics.geometric_mean(g.tokens_per_s for g in report.generation if g.n_draft == n_draft)
    plain = next(figure for figure in report.generation if not figure.n_draft)
    best = max((n for n in means if n), key=means.__getitem__, default=0)
    return KeptSpeed(
        place=plan_place(plan),
        model=report.model,
        file_type=plan.file_type,
        shapes=shapes_of(plan.model),
        tps=means[0],
        tps_mtp=means[best] if best else 0.0,
        n_draft=best,
        read_bytes=round(plain.read_bytes_per_token),
        date=(date or datetime.datetime.now().astimezone().date()).isoformat(),
        llama_cpp=LLAMA_CPP_COMMIT,
    )


def keep_report(report: BenchReport, plan: FitPlan) -> Path:
    """Keeps a benchmark's speeds; gives the file.

    Raises:
        OutputError: it cannot be written.
    """
    return keep_speed(kept_speed(report, plan))
