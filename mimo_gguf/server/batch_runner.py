"""Answers the batches of a server, one after the other, with what its clients leave free.

A row has the lowest priority. If a client's request finds every slot taken, the row that has run the shortest time
gives its slot up, and is answered again later. Whatever happens to the server, a batch goes on at the next start: its
state is on the disk, and so is every line of its output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

from mimo_gguf.batch.answerer import Answerer
from mimo_gguf.batch.ids import IdTable
from mimo_gguf.batch.job import BatchJob
from mimo_gguf.batch.loop import answer_rows, in_thread
from mimo_gguf.batch.open_job import Source, open_job
from mimo_gguf.batch.output import open_output
from mimo_gguf.batch.reading import InputFile
from mimo_gguf.batch.rows import Fault, Result, Row, Run
from mimo_gguf.batch.survey import Survey, survey
from mimo_gguf.core.errors import MimoGgufError, UsageError
from mimo_gguf.core.log import LOGGER
from mimo_gguf.server.batch_store import Batch, BatchStore
from mimo_gguf.server.failures import Refused, refusal
from mimo_gguf.server.file_store import FileStore

_EXPIRED: Final = ("batch_expired", "This request could not be executed before the completion window expired.")
_PAUSE_S: Final = 5.0  # after a failure that is not the batch's, before it is tried again


class BatchRunner:
    """The batches of a server. All methods belong to the event loop's thread."""

    def __init__(self, files: FileStore, batches: BatchStore, answerer: Answerer) -> None:
        """Makes the runner; nothing is answered before `start`."""
        self.files, self.batches = files, batches
        self._answerer = answerer
        self._there_is_work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._running: tuple[Batch, asyncio.Task[None]] | None = None
        self._job: BatchJob | None = None

    def start(self) -> None:
        """Goes on with what earlier servers have left, and waits for more."""
        self._there_is_work.set()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Breaks off; the next server goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def create(self, batch: Batch) -> Batch:
        """Queues a batch. Raises Refused if its file is not there or is not for batches."""
        described = self.files.find(batch.input_file_id)
        if described["purpose"] != "batch":
            raise refusal(400, "the file's purpose is not batch", code="invalid_purpose", param="input_file_id")
        self.batches.save(batch)
        self._there_is_work.set()
        return batch

    def cancel(self, batch_id: str) -> Batch:
        """Stops a batch. Its answers stay. Raises Refused if there is none, or it has ended already."""
        batch = self.batches.find(batch_id)
        if batch.status in {"cancelling", "cancelled"}:
            return batch
        if not batch.is_open or batch.status == "finalizing":
            raise refusal(409, f"the batch is {batch.status} already", code="batch_ended")
        batch.become("cancelling")
        batch.ends_as = "cancelled"
        self.batches.save(batch)
        if self._running is not None and self._running[0] is batch:
            self._running[1].cancel()
        self._there_is_work.set()
        return batch

    def described(self, batch: Batch) -> dict[str, Any]:
        """A batch as OpenAI describes it, with the counts of this moment."""
        if self._running is not None and self._running[0] is batch and self._job is not None:
            self._count(batch, self._job)
        return batch.as_json()

    def uses(self, file_id: str) -> bool:
        """Whether an open batch reads a file."""
        return any(batch.is_open and batch.input_file_id == file_id for batch in self.batches.list())

    async def _run(self) -> None:
        while True:
            batch = next((each for each in reversed(self.batches.list()) if each.is_open), None)
            if batch is None:
                self._there_is_work.clear()
                await self._there_is_work.wait()
                continue
            try:
                await self._advance(batch)
            except MimoGgufError as error:
                LOGGER.error("batch %s: %s (%s)", batch.id, error.message, error.hint)
                await asyncio.sleep(_PAUSE_S)
            except Exception:
                LOGGER.exception("batch %s", batch.id)
                await asyncio.sleep(_PAUSE_S)

    async def _advance(self, batch: Batch) -> None:
        """Brings a batch from its state to the next one."""
        match batch.status:
            case "validating":
                await self._validate(batch)
            case "in_progress":
                await self._answer(batch)
            case _:
                await self._finalize(batch)
        self.batches.save(batch)

    async def _validate(self, batch: Batch) -> None:
        try:
            found = await in_thread(lambda: look_at(self.files.path(batch.input_file_id), batch.endpoint))
        except (UsageError, Refused) as error:
            found = Survey()
            found.add_fault(Fault(1, "invalid_file", str(error)))
        if batch.status != "validating":  # it was cancelled meanwhile
            return
        batch.total = found.n_rows
        if found.faults:
            batch.errors = [fault.as_json() for fault in found.faults]
            batch.become("failed")
        else:
            batch.become("in_progress")

    async def _answer(self, batch: Batch) -> None:
        """Answers what is left of a batch, until its end, or until it is cancelled or has expired."""
        source = Source(self.files.path(batch.input_file_id), self.batches.work_path(batch))
        job, _ = await in_thread(lambda: open_job(source, Run(batch.id), _accept))
        if batch.status != "in_progress":  # it was cancelled meanwhile
            job.close()
            return
        work = asyncio.create_task(answer_rows(job, self._answerer))
        self._job = job
        self._running = (batch, work)
        try:
            await asyncio.wait({work}, timeout=max(batch.expires_at - time.time(), 0))
            if not work.done():
                batch.ends_as = "expired"
            elif not work.cancelled():
                work.result()
            if batch.status == "in_progress":
                batch.become("finalizing")
        finally:
            self._running = None
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._count(batch, job)
            job.close()
            self._job = None

    async def _finalize(self, batch: Batch) -> None:
        """Brings the lines of output into their files. A batch that is killed here does it again."""
        n_answers, n_failures = await in_thread(lambda: self._bring(batch))
        batch.completed, batch.failed = n_answers, n_failures
        batch.has_output, batch.has_errors = bool(n_answers), bool(n_failures)
        for file_id, kind, n in ((batch.output_id, "output", n_answers), (batch.error_id, "error", n_failures)):
            if n:
                self.files.add(file_id, f"{batch.id}_{kind}.jsonl", "batch_output")
        batch.become(batch.ends_as)
        self.batches.save(batch)
        self.batches.work_path(batch).unlink(missing_ok=True)

    def _bring(self, batch: Batch) -> tuple[int, int]:
        """Writes the files of answers and failures. Returns how many there are of each.

        A row that came too late has a line that says so. Of a batch that was cancelled there is what was answered.
        """
        path, run = self.batches.work_path(batch), Run(batch.id)
        if batch.ends_as == "expired":
            job, _ = open_job(Source(self.files.path(batch.input_file_id), path), run, _accept)
            try:
                while rows := job.next_rows():
                    for row in rows:
                        if isinstance(row, Row):
                            job.note_unanswered(row, *_EXPIRED)
                job.finish()
            finally:
                job.close()
        else:
            open_output(path, run).finish()
        return _split(path, self.files, batch)

    @staticmethod
    def _count(batch: Batch, job: BatchJob) -> None:
        batch.failed = job.progress.n_failed
        batch.completed = job.progress.n_done - job.progress.n_failed


def look_at(path: Path, endpoint: str) -> Survey:
    """What is in an uploaded file. Rows for another path than the batch's are faults, as OpenAI has it.

    Raises:
        UsageError: it cannot be read.
    """
    faults: list[Fault] = []

    def note_url(row: Row) -> Result | None:
        if row.method != "POST":
            faults.append(Fault(row.number, "invalid_method", "method must be POST", "method"))
        elif row.url != endpoint:
            faults.append(Fault(row.number, "mismatched_url", f"url is not {endpoint}, as the batch's endpoint", "url"))
        elif not isinstance(row.body, dict):
            faults.append(Fault(row.number, "missing_required_parameter", "body must be an object", "body"))
        return None

    file = InputFile(path)
    try:
        found = survey(file.lines(), note_url, IdTable())
    finally:
        file.close()
    for fault in faults:
        found.add_fault(fault)
    found.faults.sort(key=lambda fault: fault.number)
    if not found.n_rows and not found.faults:
        found.add_fault(Fault(1, "empty_file", "the file has no rows"))
    return found


def _accept(row: Row) -> None:
    """Refuses no row: a batch in progress was looked at before."""


def _split(path: Path, files: FileStore, batch: Batch) -> tuple[int, int]:
    """Writes the lines with answers into one file, and the others into another. Returns how many there are of each."""
    counts = {batch.output_id: 0, batch.error_id: 0}
    with contextlib.ExitStack() as stack:
        outputs: dict[str, BinaryIO] = {}
        for line in stack.enter_context(path.open("rb")):
            response = json.loads(line)["response"]
            is_answer = response is not None and response["status_code"] == 200
            file_id = batch.output_id if is_answer else batch.error_id
            if file_id not in outputs:
                outputs[file_id] = stack.enter_context(files.writing(file_id))
            outputs[file_id].write(line)
            counts[file_id] += 1
    return counts[batch.output_id], counts[batch.error_id]
