"""The verb `batch`: the server's engine, started without HTTP, answers a file of rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_gguf.core.errors import UsageError

if TYPE_CHECKING:
    from mimo_gguf.batch.job import BatchJob
    from mimo_gguf.batch.open_job import Source
    from mimo_gguf.batch.progress import BatchProgress
    from mimo_gguf.batch.rows import Run
    from mimo_gguf.batch.survey import Survey
    from mimo_gguf.core.gguf_file import GgufFile
    from mimo_gguf.engine.session import SessionOptions
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.runtime.llm import LLM
    from mimo_gguf.runtime.slots import Slots
    from mimo_gguf.server.row_answers import Rules

_SCORED_ROWS = 64  # tokens of a prompt that one pass scores for `echo`
_SMALLEST_WINDOW = 256
_MOST_WAITING = 1 << 20  # answers; the loop decides how many rows wait


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
class _Settings:
    """How a model is run for a batch, as the user gave it."""

    model: Path
    names: tuple[str, ...]
    ctx: int | None
    parallel: int | None
    mtp: bool | None
    draft: int
    always_draft: bool
    threads: int | None
    gpu_layers: int | None
    kv_type: str | None
    ubatch: int | None
    exact: bool

    def fingerprint(self, file: GgufFile) -> str:
        """What decides the answers: the weights, as the file's header and size tell, and how they are computed."""
        parts = " ".join(f"{part.header_digest} {part.path.stat().st_size}" for part in file.parts)
        return f"{parts} exact={self.exact}"

    def options(self, n_parallel: int = 1) -> SessionOptions:
        """The options of the session."""
        from mimo_gguf.engine.session import SessionOptions

        return SessionOptions(
            n_parallel=n_parallel, n_threads=self.threads or 0, n_draft=self.draft, adaptive=not self.always_draft,
            n_prompt_rows=_SCORED_ROWS, exact=self.exact,
        )  # fmt: skip

    def slots(self, file: GgufFile, survey: Survey | None) -> Slots:
        """How many rows are answered at a time, and with which plan."""
        from mimo_gguf.core.kv_cache import parse_kv_type
        from mimo_gguf.fit.solver import Wishes
        from mimo_gguf.runtime.slots import choose_slots

        wishes = Wishes(
            n_ctx=self.ctx, kv_type=None if self.kv_type is None else parse_kv_type(self.kv_type), mtp=self.mtp,
            n_ubatch=self.ubatch, n_gpu_layers=self.gpu_layers, exact=self.exact,
        )  # fmt: skip
        window = None if survey is None else _window(survey)
        n_left = None if survey is None else survey.n_rows - survey.n_answered
        return choose_slots(
            file, wishes, self.options(), window=window, most=n_left, n_parallel=self.parallel
        )  # fmt: skip

    def load(self, slots: Slots, *, force: bool, on_plan: Callable[[FitPlan], None] | None) -> LLM:
        """The model, loaded. Raises MimoGgufError as `Model.load`."""
        from mimo_gguf.runtime.llm import LLM
        from mimo_gguf.runtime.model import Model

        model = Model.load(
            self.model, n_ctx=slots.n_ctx, kv_type=self.kv_type, mtp=self.mtp, n_ubatch=self.ubatch,
            n_gpu_layers=self.gpu_layers, options=self.options(slots.n_parallel), exact=self.exact, force=force,
            on_plan=on_plan,
        )  # fmt: skip
        return LLM.of_model(model)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A batch as it was asked for: the rows, where they go, and what answers them."""

    settings: _Settings
    source: Source
    file: GgufFile
    run: Run
    rules: Rules

    @classmethod
    def of(
        cls, rows: str | Path, out: str | Path, model: str | Path, alias: str | Sequence[str], *, retry_errors: bool,
        force: bool, **how: Any,
    ) -> _Asked:  # fmt: skip
        """The batch of a verb's arguments; `how` are those of `_Settings`. Reads the model's header.

        Raises:
            UsageError: the library that checks bodies is missing.
            GgufError: the model cannot be read.
        """
        _check_libraries()
        from mimo_gguf.batch.open_job import Source
        from mimo_gguf.batch.rows import Run
        from mimo_gguf.core.runnable import read_runnable
        from mimo_gguf.server.row_answers import Rules

        settings = _Settings(model=Path(model), names=_names(model, alias), **how)
        file = read_runnable(settings.model)
        source = Source(rows, out, retry_errors, force)
        return cls(settings, source, file, Run(settings.fingerprint(file)), Rules(settings.names))


def batch(
    rows: str | Path, *, model: str | Path, out: str | Path = "-", alias: str | Sequence[str] = (),
    ctx: int | None = None, parallel: int | None = None, mtp: bool | None = None, draft: int = 1,
    always_draft: bool = False, threads: int | None = None, gpu_layers: int | None = None, kv_type: str | None = None,
    ubatch: int | None = None, exact: bool = False, retry_errors: bool = False, force: bool = False,
    on_plan: Callable[[FitPlan], None] | None = None, on_start: Callable[[BatchProgress], None] | None = None,
    on_progress: Callable[[BatchProgress], None] | None = None,
) -> BatchProgress:  # fmt: skip
    """Answers the rows of a file in OpenAI's batch form, many at a time. A run that was stopped goes on.

    Args:
        rows: the file, one JSON object a line; "-" for stdin.
        model: a GGUF file, from which the model also has its name.
        out: the file of answers; "-" for stdout.
        alias: further names of the model, as rows may give it.
        ctx, parallel: tokens that the rows in work share, and how many are in work; what is None is chosen, so that
            the longest row has room, and the memory is used.
        mtp, draft, always_draft: whether drafts are made, how many at a time, and whether even if that is slower.
        threads, gpu_layers, kv_type, ubatch, exact: as for `Model.load`.
        retry_errors: answer the rows again that failed in an earlier run.
        force: start over whatever is in `out`, and with a plan that does not seem to fit.
        on_plan: called with the plan before anything is loaded.
        on_start: called when the model is loaded.
        on_progress: called after each row.

    Returns:
        The figures of the whole batch.

    Raises:
        UsageError: the input cannot be read, a line is not a row of its own, no row can be answered, a row has changed
            since it was answered, or the library that checks bodies is missing.
        OutputError: the output cannot be written, or is of something else.
        GgufError, DoesNotFit, BackendError: as `Model.load`; BackendError also if the backend fails at row after row.
    """
    asked = _Asked.of(
        rows, out, model, alias, retry_errors=retry_errors, force=force, ctx=ctx, parallel=parallel, mtp=mtp,
        draft=draft, always_draft=always_draft, threads=threads, gpu_layers=gpu_layers, kv_type=kv_type, ubatch=ubatch,
        exact=exact,
    )  # fmt: skip
    from mimo_gguf.batch.open_job import open_job

    job, survey = open_job(asked.source, asked.run, asked.rules.refuse, on_progress or (lambda progress: None))
    try:
        if survey is None or survey.n_answered < survey.n_rows:
            slots = asked.settings.slots(asked.file, survey)
            llm = asked.settings.load(slots, force=force, on_plan=on_plan)
            if on_start is not None:
                on_start(job.progress)
            _answer(job, llm, asked)
        return job.finish()
    finally:
        job.close()


def _answer(job: BatchJob, llm: LLM, asked: _Asked) -> None:
    """Answers what is left of a job, and closes the model."""
    from mimo_gguf.batch.loop import answer_rows
    from mimo_gguf.server.engine import Engine, Limits
    from mimo_gguf.server.row_answers import RowAnswerer

    engine = Engine(llm, Limits(n_waiting=_MOST_WAITING))
    try:
        asyncio.run(answer_rows(job, RowAnswerer.of_engine(engine, asked.rules, asked.run.fingerprint)))
    finally:
        engine.close()


def plan_batch(
    rows: str | Path, *, model: str | Path, out: str | Path = "-", alias: str | Sequence[str] = (),
    ctx: int | None = None, parallel: int | None = None, mtp: bool | None = None, draft: int = 1,
    always_draft: bool = False, threads: int | None = None, gpu_layers: int | None = None, kv_type: str | None = None,
    ubatch: int | None = None, exact: bool = False, retry_errors: bool = False, force: bool = False,
) -> BatchPlan:  # fmt: skip
    """Plans what `batch` with the same arguments would do, and checks the input. Nothing is loaded or written.

    Raises:
        MimoGgufError: as `batch`, except for errors that loading shows.
    """
    asked = _Asked.of(
        rows, out, model, alias, retry_errors=retry_errors, force=force, ctx=ctx, parallel=parallel, mtp=mtp,
        draft=draft, always_draft=always_draft, threads=threads, gpu_layers=gpu_layers, kv_type=kv_type, ubatch=ubatch,
        exact=exact,
    )  # fmt: skip
    from mimo_gguf.batch.open_job import look_through

    survey, earlier = look_through(asked.source, asked.run, asked.rules.refuse)
    slots = asked.settings.slots(asked.file, survey)
    return BatchPlan(survey, len(earlier.answered), earlier.n_failed, slots.plan)


def _window(survey: Survey) -> int:
    """The tokens that the longest row needs. An answer without a limit has 8192 together with its prompt, or more."""
    from mimo_gguf.fit.solver import GOOD_CONTEXT

    if survey.longest is None:
        return max(GOOD_CONTEXT, survey.longest_prompt + GOOD_CONTEXT // 2)
    return max(survey.longest, _SMALLEST_WINDOW)


def _names(model: str | Path, alias: str | Sequence[str]) -> tuple[str, ...]:
    further = (alias,) if isinstance(alias, str) else alias
    return tuple(dict.fromkeys((Path(model).stem, *further)))


def _check_libraries() -> None:
    """Refuses to check bodies without the library that does it."""
    from importlib.util import find_spec

    if find_spec("pydantic") is None:
        raise UsageError("batches need pydantic", hint="pip install 'mimo-gguf[serve]'")
