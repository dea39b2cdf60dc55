"""What runs on the machines of a Ray cluster: an engine in each actor, which answers many rows at a time.

Ray decides where actors run, which of them gets which parcel, and what is tried again after one has died. A parcel is
a few rows; an actor has so many of them at a time that its engine never lacks rows.
"""

from __future__ import annotations

import asyncio
import pickle
import platform
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mimo_gguf.batch.progress import Counts
from mimo_gguf.batch.rows import Row, Run, result_line
from mimo_gguf.core.errors import MimoGgufError, UsageError
from mimo_gguf.core.version import __version__

if TYPE_CHECKING:
    from mimo_gguf.batch.answerer import Answerer
    from mimo_gguf.hardware.devices import Device
    from mimo_gguf.server.batch_settings import BatchSettings
    from mimo_gguf.server.ray_cluster import Pool

T = TypeVar("T")
PARCEL: Final = "parcel"  # the only column of the tables that Ray carries


@dataclass(frozen=True, slots=True)
class Found:
    """What an actor's machine makes of the model's name.

    Attributes:
        settings: the same settings, with a model that names the file exactly, on each machine.
        names: what the model is called.
        fingerprint: what decides the answers.
    """

    settings: BatchSettings
    names: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Order:
    """What an actor has to do. It can be pickled.

    Attributes:
        found: the model, as the first machine has found it.
        find: finds the model's file, as `resolve_model` does.
        pool: the actors of the batch, among which a machine's memory is divided.
        window, n_rows: tokens that the longest row needs, and rows that there are.
        version: the version of this package that has given the order.
    """

    found: Found
    find: Callable[..., Path] | None
    pool: Pool
    window: int | None
    n_rows: int
    version: str = __version__


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to a parcel of rows: their names, lines and counts; or the error that ends the batch."""

    rows: tuple[tuple[int, bytes, Counts], ...] = ()
    error: MimoGgufError | None = None


def look_for_model(settings: BatchSettings, find: Callable[..., Path] | None) -> Found | MimoGgufError:
    """Finds or makes the model on the machine where this runs. The error is a result, so that it arrives as it is."""
    from mimo_gguf.core.runnable import read_runnable
    from mimo_gguf.store.names import file_type_of, parse_model_name

    try:
        here = settings.found(find)
        file = read_runnable(Path(here.model))
    except MimoGgufError as error:
        return _of_this_machine(error)
    name = parse_model_name(str(settings.model))
    if name is not None and name.kind != "file" and name.file_type is None:
        exactly = str(replace(name, file_type=file_type_of(here.model)))  # other machines may have other memory
        settings = replace(settings, model=exactly)
    return Found(settings, here.names, here.fingerprint(file))


class RowActor:
    """An actor of Ray Data's pool: called with parcels of rows, from many threads, it gives their answers."""

    def __init__(self, order: Order, answerer_of: Callable[[Order], Answerer] | None = None) -> None:
        """Loads the model. What goes wrong is the answer to every parcel, because Ray tells of it less clearly.

        Args:
            answerer_of: makes what answers; None for an engine.
        """
        self._run = Run(order.found.fingerprint)
        self._error: MimoGgufError | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="mimo-gguf-rows").start()
        try:
            self._answerer = self._in_loop(_made(answerer_of or engine_answerer, order))
        except MimoGgufError as error:
            self._error = _of_this_machine(error)

    def __call__(self, table: Any) -> Any:
        """The answers to the parcels in a table of Arrow, as another one."""
        return table_of([pickle.dumps(self.answer(pickle.loads(parcel))) for parcel in table[PARCEL].to_pylist()])

    def answer(self, rows: Sequence[Row]) -> Answered:
        """Answers a parcel of rows."""
        if self._error is not None:
            return Answered(error=self._error)
        try:
            return Answered(self._in_loop(self._answer_all(rows)))
        except MimoGgufError as error:
            return Answered(error=_of_this_machine(error))

    async def _answer_all(self, rows: Sequence[Row]) -> tuple[tuple[int, bytes, Counts], ...]:
        results = await asyncio.gather(*(self._answerer.answer(row) for row in rows))
        return tuple(
            (row.name, result_line(row, result, self._run), Counts.of(result))
            for row, result in zip(rows, results, strict=True)
        )

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def engine_answerer(order: Order) -> Answerer:
    """Loads the model with the memory that this machine has for one actor.

    Raises:
        UsageError: another version of this package is installed here, or another file has the model's name.
        MimoGgufError: as `resolve_model` and `Model.load`.
    """
    from mimo_gguf.core.runnable import read_runnable
    from mimo_gguf.server.engine import Engine
    from mimo_gguf.server.row_answers import EVERY_ROW, RowAnswerer, Rules

    if order.version != __version__:
        raise UsageError(f"mimo-gguf {__version__}, not {order.version}", hint="install the same on each machine")
    settings = order.found.settings.found(order.find)
    file = read_runnable(Path(settings.model))
    if settings.fingerprint(file) != order.found.fingerprint:
        raise UsageError(f"{settings.model}: not the file that others have", hint="copy the file to each machine")
    devices = _share(order.pool)
    slots = settings.slots(file, window=order.window, most=order.n_rows, devices=devices)
    engine = Engine(settings.load(slots, devices=devices), EVERY_ROW)
    return RowAnswerer.of_engine(engine, Rules(order.found.names), order.found.fingerprint)


def table_of(parcels: Sequence[bytes]) -> Any:
    """A table of Arrow with these parcels."""
    import pyarrow

    return pyarrow.table({PARCEL: pyarrow.array(parcels, pyarrow.large_binary())})


def _share(pool: Pool) -> tuple[Device, ...]:
    """This machine's devices, with the host's free memory divided among the actors that it has room for.

    An actor sees no GPU but its own: Ray hides the others.
    """
    from mimo_gguf.hardware.devices import list_devices
    from mimo_gguf.server.ray_cluster import this_node

    *gpus, host = list_devices()
    n = max(min(pool.room_on(this_node()), pool.n_actors), 1)
    return (*(gpus if pool.n_gpus else ()), replace(host, free_bytes=host.free_bytes // n))


def _of_this_machine(error: MimoGgufError) -> MimoGgufError:
    """The error with the machine's name before its message."""
    error.message = f"on {platform.node()}: {error.message}"
    error.args = (error.message,)
    return error.with_traceback(None)


async def _made(answerer_of: Callable[[Order], Answerer], order: Order) -> Answerer:
    """Makes the answerer in the event loop's thread, to which an engine belongs."""
    return answerer_of(order)
