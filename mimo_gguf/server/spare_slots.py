"""Answers rows in the slots that nobody else needs, and gives them back as soon as somebody does."""

from __future__ import annotations

import asyncio
from typing import Any

from mimo_gguf.batch.rows import Result, Row
from mimo_gguf.server.answers import Answers
from mimo_gguf.server.asking import BACKGROUND, asking
from mimo_gguf.server.engine import Engine
from mimo_gguf.server.models import Models
from mimo_gguf.server.row_answers import RowAnswerer, Rules

_FULL = 429
_PAUSE_S = 1.0  # before a row is tried again for which the queue had no room


class SpareSlots:
    """An `Answerer` for the batches of a server: its rows have the lowest priority.

    A row that loses its slot is begun anew. What was read of its prompt is mostly still in the cache then.
    """

    def __init__(self, models: Models, n_parallel: int) -> None:
        """Answers with all models, `n_parallel` rows at a time."""
        self.n_in_flight, self.fingerprint = n_parallel, ""
        self._models = models
        self._rows = RowAnswerer(Rules(models.names), self._engine_of, n_in_flight=n_parallel)
        self._rows.on_begin = self._note
        self._begun: dict[asyncio.Task[Any], Answers] = {}  # the rows in work, the oldest first
        self._losing: set[asyncio.Task[Any]] = set()
        models.on_wait = self.make_way

    async def answer(self, row: Row) -> Result:
        """Answers a row, however often it has to begin. Raises as `RowAnswerer.answer`."""
        while True:
            task = asyncio.create_task(self._once(row))
            try:
                result = await task
            except asyncio.CancelledError:
                this = asyncio.current_task()
                if task not in self._losing or (this is not None and this.cancelling()):
                    raise
                continue
            finally:
                self._begun.pop(task, None)
                self._losing.discard(task)
            if result.status != _FULL:
                return result
            await asyncio.sleep(_PAUSE_S)

    def make_way(self, engine: Engine) -> None:
        """Takes slots from rows, the youngest first, for requests of clients that wait for one."""
        calls = {task: answers.call for task, answers in self._begun.items() if answers.call.engine is engine}
        having = [task for task, call in calls.items() if call.has_slot]
        n = engine.n_lacking - sum(task in self._losing for task in having)
        for task in [task for task in reversed(having) if task not in self._losing][: max(n, 0)]:
            self._losing.add(task)
            task.cancel()

    async def _once(self, row: Row) -> Result:
        with asking("batch", BACKGROUND):
            return await self._rows.answer(row)

    async def _engine_of(self, name: str | None) -> tuple[str, Engine]:
        use = await self._models.use(name)
        return use.name, use.engine

    def _note(self, answers: Answers) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._begun[task] = answers
