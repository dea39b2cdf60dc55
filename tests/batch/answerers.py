"""Answerers that need no model, and inputs for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimo_gguf.batch.job import BatchJob
from mimo_gguf.batch.loop import answer_rows
from mimo_gguf.batch.open_job import Source, open_job
from mimo_gguf.batch.progress import BatchProgress
from mimo_gguf.batch.rows import Result, Row, Run


@dataclass(slots=True)
class Echo:
    """Answers a row with its prompt, and fails where a row says so.

    Attributes:
        rows: the rows in the order in which they came.
        most: the rows that were answered at a time, at most.
    """

    n_in_flight: int = 4
    fingerprint: str = "echo"
    pause: Callable[[Row], float] = lambda row: 0.0
    rows: list[Row] = field(default_factory=list)
    most: int = 0
    _open: int = 0

    async def answer(self, row: Row) -> Result:
        self.rows.append(row)
        self._open += 1
        self.most = max(self.most, self._open)
        try:
            await asyncio.sleep(self.pause(row))
        finally:
            self._open -= 1
        if row.body.get("fails"):
            return Result(400, {"error": {"message": "as it was wished", "code": "invalid_value"}})
        usage = {"prompt_tokens": 2, "completion_tokens": 3}
        return Result(200, {"text": row.body["prompt"], "seed": row.seed, "usage": usage})


def request(custom_id: str, prompt: str = "x", **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": {"prompt": prompt, **body}
    }  # fmt: skip


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def accept(row: Row) -> None:
    """Refuses no row before it is answered."""


def opened(source: Source, answerer: Echo, refuse: Callable[[Row], Result | None] = accept) -> BatchJob:
    return open_job(source, Run(answerer.fingerprint), refuse)[0]


def answered(source: Source, answerer: Echo | None = None) -> BatchProgress:
    """Answers a whole batch. If it fails, the output is left as a run that was killed leaves it."""
    answerer = answerer or Echo()
    job = opened(source, answerer)
    try:
        asyncio.run(answer_rows(job, answerer))
        return job.finish()
    finally:
        job.close()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
