"""Whoever answers a file of rows for an evaluation: a model that is loaded here or on a cluster, or a server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.paths import path_kind
from mimo_gguf.evaluation.grading import OnGraded
from mimo_gguf.evaluation.summary import Summary, read_summary

if TYPE_CHECKING:
    from mimo_gguf.batch.progress import BatchProgress
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.server.ray_cluster import Pool

OnTask = Callable[[str, str], None]  # model, title of the task that begins


class Machine(Protocol):
    """Whatever answers a file of rows."""

    @property
    def name(self) -> str:
        """The model's name, which its folder has, too."""

    @property
    def served(self) -> str | None:
        """What requests call the model; None for a file."""

    def ready(self) -> Machine:
        """The same with whatever has to be there before it answers."""

    def answer(self, rows: Path, out: Path, *, retry_errors: bool, force: bool) -> None:
        """Answers the rows that have no answer yet."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told how far an evaluation is."""

    on_task: OnTask = lambda model, title: None
    on_plan: Callable[[FitPlan], None] | None = None
    on_pool: Callable[[Pool], None] | None = None
    on_start: Callable[[BatchProgress], None] | None = None
    on_progress: Callable[[BatchProgress], None] | None = None
    on_graded: OnGraded | None = None


@dataclass(frozen=True, slots=True)
class Here:
    """A model that is loaded here, or on a Ray cluster: the verb `batch`."""

    model: str | Path
    how: dict[str, Any]
    tell: Listeners
    served: str | None = None

    @property
    def name(self) -> str:
        """The name of the model's file, or of the model on the Hub."""
        text = str(self.model)
        return folder_name(Path(text).stem if text.lower().endswith(".gguf") else Path(text).name)

    def ready(self) -> Here:
        """The same with the model's file, which is made if it has to be. A cluster's machines find it themselves."""
        from mimo_gguf.server.batch_settings import BatchSettings

        if self.how["ray"] is not None:
            return self
        names = [each.name for each in fields(BatchSettings)]
        settings = BatchSettings(self.model, **{key: value for key, value in self.how.items() if key in names})
        return replace(self, model=settings.found(self.how["find"]).model)

    def answer(self, rows: Path, out: Path, *, retry_errors: bool, force: bool) -> None:
        from mimo_gguf.server.offline import batch

        batch(
            rows, model=self.model, out=out, retry_errors=retry_errors, on_plan=self.tell.on_plan,
            on_pool=self.tell.on_pool, on_start=self.tell.on_start, on_progress=self.tell.on_progress,
            **(self.how | {"force": force}),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class There:
    """A model behind a URL."""

    url: str
    served: str
    parallel: int | None
    tell: Listeners

    @property
    def name(self) -> str:
        """The model's name as that of a folder."""
        return folder_name(self.served.rpartition("/")[2].removesuffix(".gguf"))

    def ready(self) -> There:
        """The same: a server is ready."""
        return self

    def answer(self, rows: Path, out: Path, *, retry_errors: bool, force: bool) -> None:
        from mimo_gguf.batch.loop import answer_rows
        from mimo_gguf.batch.open_job import Source, open_job
        from mimo_gguf.batch.rows import Run
        from mimo_gguf.evaluation.over_http import N_IN_FLIGHT, OverHttp

        http = OverHttp(self.url, self.served, n_in_flight=self.parallel or N_IN_FLIGHT)
        source = Source(rows, out, retry_errors, force)
        on_progress = self.tell.on_progress or (lambda progress: None)
        job, survey = open_job(source, Run(http.fingerprint), lambda row: None, on_progress)

        async def work() -> None:
            async with http:
                await answer_rows(job, http)

        try:
            if survey is None or survey.n_answered < survey.n_rows:
                if self.tell.on_start is not None:
                    self.tell.on_start(job.progress)
                asyncio.run(work())
            job.finish()
        finally:
            job.close()


def machine_of(model: str | Path | None, url: str | None, how: dict[str, Any], tell: Listeners) -> Here | There:
    """Whoever answers for a model. A file's header is read before anything is downloaded for it.

    Args:
        how: the arguments of `batch` besides rows, model and output.

    Raises:
        UsageError: no model is given, or the address is none.
        GgufError: the file cannot be run.
        BackendError: the server cannot be asked.
    """
    if url is not None:
        from mimo_gguf.evaluation.over_http import address_of, check_library, served_model

        check_library()
        address = address_of(url)
        return There(address, served_model(address, None if model is None else str(model)), how["parallel"], tell)
    if model is None:
        raise UsageError("missing argument 'MODEL'", hint="mimo-gguf evaluate FILE.gguf --task sums")
    if str(model).lower().endswith(".gguf"):
        from mimo_gguf.core.runnable import read_runnable

        read_runnable(Path(model))
    return Here(model, how, tell)


def base_of(base: str | Path | None, how: dict[str, Any], tell: Listeners) -> Here | There | Summary | None:
    """What is compared with: a model that is asked, or what was measured earlier. Raises as `machine_of`."""
    if base is None:
        return None
    is_measured = path_kind(base) == "folder" and path_kind(Path(base) / "config.json") == "nothing"
    return read_summary(Path(base)) if is_measured else machine_of(base, None, how, tell)


def folder_name(name: str) -> str:
    """A model's name as that of a folder, which stays within the folder above it."""
    return re.sub(r"[^\w.-]", "-", name).lstrip(".") or "model"
