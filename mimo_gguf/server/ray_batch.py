"""A batch on a Ray cluster: Ray Data carries parcels of rows to a pool of actors, and their answers back to one writer.

    input ──cut──> pieces ──read beside the writer──> parcels ──actors, an engine in each──> lines ──written──> output

The scheduling, the retries after a lost actor or machine, and how far reading runs ahead are Ray's. Reading a piece a
second time gives the same parcels, so Ray can make again whatever a lost machine had.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mimo_gguf.batch.ids import IdTable
from mimo_gguf.batch.open_job import open_job
from mimo_gguf.batch.pieces import Piece, cut, parcels
from mimo_gguf.batch.rows import Run
from mimo_gguf.core.errors import BackendError, MimoGgufError, UsageError, first_line
from mimo_gguf.core.units import MIB, counted
from mimo_gguf.runtime.slots import MOST_ON_CPU, MOST_ON_GPU
from mimo_gguf.server.batch_settings import BatchSettings, window_of
from mimo_gguf.server.ray_actor import PARCEL, Answered, Found, Order, RowActor, look_for_model, table_of
from mimo_gguf.server.ray_cluster import Pool, RayWishes, choose_pool, joined, ray_nodes
from mimo_gguf.server.row_answers import AHEAD, Rules

if TYPE_CHECKING:
    from mimo_gguf.batch.answerer import Answerer
    from mimo_gguf.batch.job import BatchJob
    from mimo_gguf.batch.open_job import Source
    from mimo_gguf.batch.progress import BatchProgress
    from mimo_gguf.batch.reading import InputFile

_LARGEST_PARCEL: Final = 16  # rows
_PIECES_A_ROUND: Final = 64  # 65,536 rows: Ray keeps a note of each parcel, and sends all of them around every 5 s
_PARCELS_EACH: Final = 4  # times that an actor is filled again, at least, before parcels become larger
_ON_THE_WAY_BYTES: Final = 256 * MIB  # of parcels, read and answered, in Ray's object store
_AGAIN: Final = "no answer is lost: run the same command again"


@dataclass(frozen=True, slots=True)
class Calls:
    """How rows come to actors.

    Attributes:
        n_rows: rows of a parcel.
        n_open: parcels that an actor answers at a time.
    """

    n_rows: int
    n_open: int


def batch_on_ray(
    settings: BatchSettings, source: Source, wishes: RayWishes, *, find: Callable[..., Path] | None = None,
    on_pool: Callable[[Pool], None] | None = None, on_start: Callable[[BatchProgress], None] | None = None,
    on_progress: Callable[[BatchProgress], None] | None = None,
) -> BatchProgress:  # fmt: skip
    """Answers the rows of a file on a Ray cluster; otherwise as `batch`.

    Args:
        find: finds the model's file on each machine, with the arguments of `resolve_model`; it must be picklable.
        on_pool: called with the actors that will be started.

    Raises:
        UsageError: as `batch`; the rows come from a pipe, Ray is missing, or the cluster has no room for an actor.
        BackendError: no cluster answers, or it can answer no further rows.
        MimoGgufError: as `batch`.
    """
    if source.is_pipe:
        raise UsageError("rows from a pipe cannot be read twice, as Ray may have to", hint="give a file of rows")
    with joined(wishes.address):
        pool = choose_pool(ray_nodes(), wishes)
        if on_pool is not None:
            on_pool(pool)
        if settings.threads is None and not pool.n_gpus:
            settings = replace(settings, threads=int(pool.n_cpus))
        found = _look_for_model(settings, find, pool)
        rules, run = Rules(found.names), Run(found.fingerprint)
        job, survey = open_job(source, run, rules.refuse, on_progress or (lambda progress: None))
        try:
            assert survey is not None, "a file is looked through"
            if survey.n_left:
                if on_start is not None:
                    on_start(job.progress)
                answer_on_ray(job, Order(found, find, pool, window_of(survey), survey.n_left))
            return job.finish()
        finally:
            job.close()


def answer_on_ray(job: BatchJob, order: Order, answerer_of: Callable[[Order], Answerer] | None = None) -> None:
    """Answers all rows of a job that was opened with a file, with the cluster that this program has joined.

    Args:
        answerer_of: what answers in each actor; None for an engine.

    Raises:
        UsageError: the input has changed.
        OutputError: the output cannot be written.
        BackendError: an actor cannot be started or kept, or rows came back without an answer.
        MimoGgufError: what an actor says of its machine.
    """
    assert job.file is not None
    calls = choose_calls(order.pool, order.n_rows, order.found.settings.parallel)
    earlier = job.output.earlier.answered
    job.progress.begin()
    with _quiet_data():
        for pieces in _rounds(job.file, earlier):
            with closing(_answers(_dataset(pieces, earlier, order, calls, answerer_of), job)) as parcels_answered:
                for answered in parcels_answered:
                    if answered.error is not None:
                        raise answered.error
                    for name, line, counts in answered.rows:
                        job.note_line(name, line, counts)
    n_missing = order.n_rows - job.progress.n_new
    if n_missing:
        raise BackendError(f"{counted(n_missing, 'row')} came back without an answer", hint=_AGAIN)


def _rounds(file: InputFile, answered: IdTable) -> Iterator[list[Piece]]:
    """The pieces of the input in which rows are left, so many at a time as one dataset has."""
    pieces = cut(file)
    if len(answered):
        pieces = (piece for piece in pieces if next(parcels(piece, answered, 1), None) is not None)
    while found := list(islice(pieces, _PIECES_A_ROUND)):
        yield found


def choose_calls(pool: Pool, n_rows: int, n_parallel: int | None) -> Calls:
    """How many rows make a parcel, and how many parcels an actor gets, so that no slot of its engine waits for a row.

    Args:
        n_rows: rows that there are. The fewer, the smaller the parcels, so that all actors end at nearly the same time.
        n_parallel: slots of an engine; None for as many as one may have.
    """
    n_wanted = AHEAD * (n_parallel or (MOST_ON_GPU if pool.n_gpus else MOST_ON_CPU))
    n = max(1, min(n_rows // (pool.n_actors * n_wanted * _PARCELS_EACH), _LARGEST_PARCEL))
    return Calls(n, math.ceil(n_wanted / n))


def _look_for_model(settings: BatchSettings, find: Callable[..., Path] | None, pool: Pool) -> Found:
    """Finds the model on one of the machines that will answer. Raises MimoGgufError."""
    import ray

    work = ray.remote(num_cpus=pool.n_cpus, num_gpus=pool.n_gpus, max_retries=3)(look_for_model)
    try:
        found: Found | MimoGgufError = ray.get(work.remote(settings, find))
    except ray.exceptions.RayError as error:
        raise _broken(error) from None
    if isinstance(found, MimoGgufError):
        raise found
    return found


def _dataset(
    pieces: list[Piece], answered: IdTable, order: Order, calls: Calls,
    answerer_of: Callable[[Order], Answerer] | None,
) -> Any:  # fmt: skip
    """The answers as a dataset of Ray Data, which is computed while it is read."""
    import ray

    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # where the input is
    how: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    known = ray.put(answered)
    return (
        ray.data.from_items([pickle.dumps(piece) for piece in pieces], override_num_blocks=len(pieces))
        .map_batches(
            _read, fn_kwargs={"known": known, "n_rows": calls.n_rows}, num_cpus=0, label_selector=here,
            compute=ray.data.TaskPoolStrategy(size=1), **how,
        )
        .map_batches(
            RowActor, fn_constructor_args=(order, answerer_of), num_cpus=order.pool.n_cpus,
            num_gpus=order.pool.n_gpus, compute=ray.data.ActorPoolStrategy(
                size=order.pool.n_actors, max_tasks_in_flight_per_actor=calls.n_open,
                max_concurrent_calls_per_actor=calls.n_open, enable_true_multi_threading=True,
            ), **how,
        )
    )  # fmt: skip


def _read(table: Any, known: Any, n_rows: int) -> Iterator[Any]:
    """The parcels of a piece, each a block of its own."""
    import ray

    answered = ray.get(known)
    for piece in table["item"].to_pylist():
        for rows in parcels(pickle.loads(piece), answered, n_rows):
            yield table_of([pickle.dumps(rows)])


def _answers(dataset: Any, job: BatchJob) -> Generator[Answered, None, None]:
    """The answers to parcels as they come. Raises MimoGgufError if Ray gives up."""
    try:
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            if PARCEL in table.column_names:  # a piece without a row that is left is a table of nothing
                for parcel in table[PARCEL].to_pylist():
                    yield pickle.loads(parcel)
    except MimoGgufError:
        raise
    except Exception as error:  # of Ray, which has no base for all of its errors
        job.check_unchanged()
        raise _broken(error) from None


@contextmanager
def _quiet_data() -> Iterator[None]:
    """Lets Ray Data show nothing, make a block of each parcel, and keep only so many of them on the way."""
    import ray
    from ray.data import DataContext, ExecutionResources

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=_ON_THE_WAY_BYTES)
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with ray.data.DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)


def _broken(error: Exception) -> BackendError:
    """What Ray says, in one line: the last one, which tells the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return BackendError(f"Ray: {lines[-1] if lines else first_line(error)}", hint=_AGAIN)
