"""The verb `batch`: the server's engine, started without HTTP, answers a file of rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_gguf.batch.open_job import Source
from mimo_gguf.core.errors import UsageError
from mimo_gguf.server.batch_settings import BatchSettings, window_of

if TYPE_CHECKING:
    from mimo_gguf.batch.job import BatchJob
    from mimo_gguf.batch.progress import BatchProgress
    from mimo_gguf.batch.rows import Run
    from mimo_gguf.batch.survey import Survey
    from mimo_gguf.core.gguf_file import GgufFile
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.runtime.llm import LLM
    from mimo_gguf.server.ray_cluster import Pool, RayWishes
    from mimo_gguf.server.row_answers import Rules


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What a batch will do.

    Attributes:
        survey: what is in the input; None for a pipe.
        n_earlier, n_failed: rows that earlier runs have answered, and those among them that failed.
        fit: how the model will be loaded.
    """

    survey: Survey | None
    n_earlier: int
    n_failed: int
    fit: FitPlan

    def as_json(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        from mimo_gguf.fit.refusal import plan_json

        counts: dict[str, Any] = {"n_earlier": self.n_earlier, "n_failed": self.n_failed}
        if self.survey is not None:
            counts |= {"n_rows": self.survey.n_rows, "n_refused": self.survey.n_refused}
        return counts | {"n_parallel": self.fit.settings.n_seq_max, "plan": plan_json(self.fit)}


@dataclass(frozen=True, slots=True)
class _Watch:
    """What is called while a batch runs."""

    on_plan: Callable[[FitPlan], None] | None
    on_pool: Callable[[Pool], None] | None
    on_start: Callable[[BatchProgress], None] | None
    on_progress: Callable[[BatchProgress], None] | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A batch as it was asked for: the rows, where they go, and what answers them."""

    settings: BatchSettings
    source: Source
    file: GgufFile
    run: Run
    rules: Rules

    @classmethod
    def of(cls, settings: BatchSettings, source: Source) -> _Asked:
        """Reads the model's header. Raises GgufError."""
        from mimo_gguf.batch.rows import Run
        from mimo_gguf.core.runnable import read_runnable
        from mimo_gguf.server.row_answers import Rules

        file = read_runnable(Path(settings.model))
        return cls(settings, source, file, Run(settings.fingerprint(file)), Rules(settings.names))


def batch(
    rows: str | Path, *, model: str | Path, out: str | Path = "-", alias: str | Sequence[str] = (),
    ctx: int | None = None, parallel: int | None = None, mtp: bool | None = None, draft: int = 1,
    always_draft: bool = False, threads: int | None = None, gpu_layers: int | None = None, kv_type: str | None = None,
    ubatch: int | None = None, exact: bool = False, retry_errors: bool = False, force: bool = False,
    ray: str | None = None, workers: int | None = None, cpus_per_worker: int | None = None,
    gpus_per_worker: int | None = None, on_plan: Callable[[FitPlan], None] | None = None,
    on_pool: Callable[[Pool], None] | None = None, on_start: Callable[[BatchProgress], None] | None = None,
    on_progress: Callable[[BatchProgress], None] | None = None, find: Callable[..., Path] | None = None,
) -> BatchProgress:  # fmt: skip
    """Answers the rows of a file in OpenAI's batch form, many at a time. A run that was stopped goes on.

    Args:
        rows: the file, one JSON object a line; "-" for stdin.
        model: a GGUF file, from which the model also has its name, or what `resolve_model` makes one of.
        out: the file of answers; "-" for stdout.
        alias: further names of the model, as rows may give it.
        ctx, parallel: tokens that the rows in work share, and how many are in work; what is None is chosen, so that
            the longest row has room, and the memory is used.
        mtp, draft, always_draft: whether drafts are made, how many at a time, and whether even if that is slower.
        threads, gpu_layers, kv_type, ubatch, exact: as for `Model.load`.
        retry_errors: answer the rows again that failed in an earlier run.
        force: start over whatever is in `out`, and with a plan that does not seem to fit.
        ray: the Ray cluster that answers, `HOST:PORT` or "auto"; None for this machine alone.
        workers, cpus_per_worker, gpus_per_worker: engines on the cluster, and the size of each; None chooses.
        on_plan, on_pool: called before anything is loaded: with the plan of this machine, or with the cluster's actors.
        on_start, on_progress: called when the model is loaded, and after each row.
        find: finds the model's file, with the arguments of `resolve_model`, which does so if it is None.

    Returns:
        The figures of the whole batch.

    Raises:
        UsageError: the input cannot be read, a line is not a row of its own, no row can be answered, a row has changed
            since it was answered, an option needs another one, or a library is missing.
        OutputError: the output cannot be written, or is of something else.
        GgufError, DoesNotFit, BackendError: as `Model.load`; BackendError also if row after row fails, or Ray does.
        CheckpointError, HubError, WeightsError: as `resolve_model`, if the model has to be made.
    """
    settings = _settings(
        model, alias, ctx, parallel, mtp, draft, always_draft, threads, gpu_layers, kv_type, ubatch, exact, force
    )
    source, watch = Source(rows, out, retry_errors, force), _Watch(on_plan, on_pool, on_start, on_progress)
    cluster = _cluster(ray, workers, cpus_per_worker, gpus_per_worker)
    if cluster is None:
        return _batch_here(settings.found(find), source, watch)
    from mimo_gguf.server.ray_batch import batch_on_ray

    return batch_on_ray(
        settings, source, cluster, find=find, on_pool=on_pool, on_start=on_start, on_progress=on_progress
    )


def _batch_here(settings: BatchSettings, source: Source, watch: _Watch) -> BatchProgress:
    """Answers the rows with an engine of this process."""
    from mimo_gguf.batch.open_job import open_job

    asked = _Asked.of(settings, source)
    job, survey = open_job(source, asked.run, asked.rules.refuse, watch.on_progress or (lambda progress: None))
    try:
        if survey is None or survey.n_left:
            slots = settings.slots(asked.file, window=window_of(survey), most=None if survey is None else survey.n_left)
            llm = settings.load(slots, on_plan=watch.on_plan)
            if watch.on_start is not None:
                watch.on_start(job.progress)
            _answer(job, llm, asked)
        return job.finish()
    finally:
        job.close()


def _answer(job: BatchJob, llm: LLM, asked: _Asked) -> None:
    """Answers what is left of a job, and closes the model."""
    from mimo_gguf.batch.loop import answer_rows
    from mimo_gguf.server.engine import Engine
    from mimo_gguf.server.row_answers import EVERY_ROW, RowAnswerer

    engine = Engine(llm, EVERY_ROW)
    try:
        asyncio.run(answer_rows(job, RowAnswerer.of_engine(engine, asked.rules, asked.run.fingerprint)))
    finally:
        engine.close()


def plan_batch(
    rows: str | Path, *, model: str | Path, out: str | Path = "-", alias: str | Sequence[str] = (),
    ctx: int | None = None, parallel: int | None = None, mtp: bool | None = None, draft: int = 1,
    always_draft: bool = False, threads: int | None = None, gpu_layers: int | None = None, kv_type: str | None = None,
    ubatch: int | None = None, exact: bool = False, retry_errors: bool = False, force: bool = False,
    find: Callable[..., Path] | None = None,
) -> BatchPlan:  # fmt: skip
    """Plans what `batch` with the same arguments would do, and checks the input. Nothing is loaded.

    A model that is not here yet is made all the same, because its file decides the plan.

    Raises:
        MimoGgufError: as `batch`, except for errors that loading shows.
    """
    from mimo_gguf.batch.open_job import look_through

    settings = _settings(
        model, alias, ctx, parallel, mtp, draft, always_draft, threads, gpu_layers, kv_type, ubatch, exact, force
    )
    asked = _Asked.of(settings.found(find), Source(rows, out, retry_errors, force))
    survey, earlier = look_through(asked.source, asked.run, asked.rules.refuse)
    slots = asked.settings.slots(asked.file, window=window_of(survey), most=None if survey is None else survey.n_left)
    return BatchPlan(survey, len(earlier.answered), earlier.n_failed, slots.plan)


def _settings(model: str | Path, alias: str | Sequence[str], *how: Any) -> BatchSettings:
    """The settings of a batch. Raises UsageError if the library that checks bodies is missing."""
    from importlib.util import find_spec

    if find_spec("pydantic") is None:
        raise UsageError("batches need pydantic", hint="pip install 'mimo-gguf[serve]'")
    return BatchSettings(model, (alias,) if isinstance(alias, str) else tuple(alias), *how)


def _cluster(address: str | None, workers: int | None, n_cpus: int | None, n_gpus: int | None) -> RayWishes | None:
    """What is wished of a Ray cluster; None without one. Raises UsageError for a size without a cluster."""
    from mimo_gguf.server.ray_cluster import RayWishes

    if address is not None:
        return RayWishes(address, workers, n_cpus, n_gpus)
    given = {"--workers": workers, "--cpus-per-worker": n_cpus, "--gpus-per-worker": n_gpus}
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} is for several machines", hint="--ray auto")
    return None
