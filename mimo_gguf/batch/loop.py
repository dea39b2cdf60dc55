"""The loop: keeps an answerer busy with rows, and writes each result as it comes."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mimo_gguf.batch.answerer import Answerer
from mimo_gguf.batch.job import BatchJob
from mimo_gguf.batch.rows import Fault, Row

T = TypeVar("T")


async def answer_rows(job: BatchJob, answerer: Answerer) -> None:
    """Answers all rows of a job, `answerer.n_in_flight` at a time. Cancelling it leaves what was answered.

    Raises:
        UsageError: the input has changed, or cannot be read.
        OutputError: the output cannot be written.
        Exception: the answerer's, if nothing can be answered any more.
    """
    rows = _Rows(job)
    job.progress.begin()

    async def work() -> None:
        while (row := await rows.next()) is not None:
            job.note(row, await answerer.answer(row))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(answerer.n_in_flight):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


class _Rows:
    """The rows of a job one by one, for several tasks."""

    def __init__(self, job: BatchJob) -> None:
        self._job = job
        self._waiting: deque[Row] = deque()
        self._ended = False
        self._reading = asyncio.Lock()

    async def next(self) -> Row | None:
        """The next row; None after the last one."""
        async with self._reading:
            while not self._waiting and not self._ended:
                block = await in_thread(self._job.next_rows)
                self._ended = not block
                for row in block:
                    if isinstance(row, Fault):
                        self._job.note_fault(row)
                    else:
                        self._waiting.append(row)
            return self._waiting.popleft() if self._waiting else None


async def in_thread(work: Callable[[], T]) -> T:
    """The result of `work` in a thread that nobody waits for at the end of the program: a pipe may stay silent."""
    loop = asyncio.get_running_loop()
    coming: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            _tell(loop, coming, partial(coming.set_exception, error))
        else:
            _tell(loop, coming, partial(coming.set_result, result))

    threading.Thread(target=run, daemon=True, name="mimo-gguf-batch").start()
    return await coming


def _tell(loop: asyncio.AbstractEventLoop, coming: asyncio.Future[T], tell: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(lambda: None if coming.done() else tell())
    except RuntimeError:  # the loop was closed meanwhile
        return


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, which is what broke the loop off."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
