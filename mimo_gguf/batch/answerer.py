"""Who answers rows: an engine of this process, actors on other machines, or another server. The loop does not care."""

from __future__ import annotations

from typing import Protocol

from mimo_gguf.batch.rows import Result, Row


class Answerer(Protocol):
    """Answers the rows of a batch, many at a time.

    The loop (`loop.answer_rows`) keeps up to `n_in_flight` calls of `answer` open, in one event loop, and writes each
    result as it comes. An example that needs no model:

        class Echo:
            n_in_flight = 8
            fingerprint = "echo 1"

            async def answer(self, row: Row) -> Result:
                return Result(200, {"choices": [{"text": row.body["prompt"]}], "usage": {"completion_tokens": 1}})

    Rows and results are plain values that can be pickled. Progress is read from the result's `usage` and `timings`,
    so an answer that has them as OpenAI and llama-server do is counted.
    """

    @property
    def n_in_flight(self) -> int:
        """The number of rows that it makes use of at a time."""

    @property
    def fingerprint(self) -> str:
        """A text that is the same for the same model and settings: another one means that the batch is another one."""

    async def answer(self, row: Row) -> Result:
        """Answers one row, while others are being answered. The answer must not depend on them.

        A row that cannot be answered is a result with the status of a failure, and the batch goes on. Cancelling the
        call ends its work soon; the row is then answered another time.

        Raises:
            Exception: nothing can be answered any more, for example because the engine is gone. The batch stops, and
                can go on later.
        """
