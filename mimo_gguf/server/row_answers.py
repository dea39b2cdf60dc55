"""Answers the rows of batches: the same bodies, jobs and documents as over HTTP, without HTTP."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from mimo_gguf.batch.rows import Result, Row
from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.log import LOGGER
from mimo_gguf.llama.vocabulary import Vocabulary
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.answers import Answers
from mimo_gguf.server.bodies import read_body, worked_on
from mimo_gguf.server.chat_form import Head, whole_chat
from mimo_gguf.server.completion_form import whole_completion
from mimo_gguf.server.engine import Engine, Limits
from mimo_gguf.server.failures import Failure, Refused, failure_of, refusal
from mimo_gguf.server.jobs import Job, chat_job, completion_job
from mimo_gguf.server.requests import ChatBody, CompletionBody

EVERY_ROW: Final = Limits(n_waiting=1 << 20)  # whoever gives the rows decides how many wait
AHEAD: Final = 2  # rows in flight for each slot, so that the next one is ready when a slot is free
_MOST_IN_A_ROW: Final = 2  # faults of the backend for each row in flight, one after the other, that end a batch


@dataclass(frozen=True, slots=True)
class Path:
    """A path whose bodies can be rows.

    Attributes:
        body: the model of its bodies.
        job: makes the job of a body.
        whole: makes the document of an answer.
        prefix: how the ids of its documents begin.
    """

    body: type[ChatBody] | type[CompletionBody]
    job: Callable[[Any, LLM], Job]
    whole: Callable[[Answers, Head, Vocabulary], Coroutine[Any, Any, dict[str, Any]]]
    prefix: str


EngineOf = Callable[[str | None], Awaitable[tuple[str, Engine]]]
PATHS: Final = {
    "/v1/chat/completions": Path(ChatBody, chat_job, whole_chat, "chatcmpl"),
    "/v1/completions": Path(CompletionBody, completion_job, whole_completion, "cmpl"),
}


def raw_body(row: Row) -> bytes:
    """The body of a row as a client would send it, with the row's own seed if it gives none."""
    body = row.body
    if isinstance(body, dict) and body.get("seed") is None:
        body = body | {"seed": row.seed}
    return json.dumps(body).encode()


@dataclass(frozen=True, slots=True)
class Rules:
    """What is known of a row before a model is loaded.

    Attributes:
        names: what the model is called; a row may leave its name out.
    """

    names: Sequence[str]

    def refuse(self, row: Row) -> Result | None:
        """The result of a row that is refused whatever the model says; None for others."""
        try:
            self.read(row, raw_body(row))
        except (Refused, ValidationError) as error:
            return failed(failure_of(error))
        return None

    def read(self, row: Row, raw: bytes) -> tuple[Path, ChatBody | CompletionBody]:
        """The path and the body of a row, from what `raw_body` gives.

        Raises:
            Refused: there is no such path or model, or the answer is to be streamed.
            ValidationError: a field of the body is wrong.
        """
        if row.method != "POST":
            raise refusal(400, f"method is {row.method!r:.40}, not POST", code="invalid_method", param="method")
        path = PATHS.get(row.url) if isinstance(row.url, str) else None
        if path is None:
            message = f"url is {row.url!r:.100}; batches are for {', '.join(PATHS)}"
            raise refusal(404, message, code="invalid_url", param="url")
        found: ChatBody | CompletionBody = read_body(path.body, raw)
        if found.stream:
            raise refusal(400, "stream is true, and rows have whole answers", code="invalid_value", param="stream")
        if found.model and found.model not in self.names:
            message = f"no model {found.model[:100]!r} here; there is {', '.join(self.names)}"
            raise refusal(404, message, code="model_not_found", param="model")
        return path, found


class RowAnswerer:
    """Answers rows with engines of this process: an `Answerer` of the batch loop.

    Attributes:
        n_in_flight: rows that it makes use of at a time.
        fingerprint: what decides the answers: the model's file, and whether rows are computed alone.
        on_begin: called with each row's answers when they have been queued.
    """

    def __init__(self, rules: Rules, engine_of: EngineOf, *, n_in_flight: int, fingerprint: str = "") -> None:
        """Makes an answerer of rows that keep to `rules`. `engine_of` gives a model by its name, and the name."""
        self.n_in_flight, self.fingerprint = n_in_flight, fingerprint
        self.on_begin: Callable[[Answers], None] = lambda answers: None
        self._rules, self._engine_of = rules, engine_of
        self._n_faults = 0  # in a row

    @classmethod
    def of_engine(cls, engine: Engine, rules: Rules, fingerprint: str = "") -> RowAnswerer:
        """An answerer with one model. It keeps so many rows in flight that no slot waits for one."""

        async def engine_of(name: str | None) -> tuple[str, Engine]:
            return name or rules.names[0], engine

        return cls(rules, engine_of, n_in_flight=AHEAD * engine.n_parallel, fingerprint=fingerprint)

    async def answer(self, row: Row) -> Result:
        """Answers a row. Raises BackendError if nothing but faults comes from the backend, or the model is closed."""
        try:
            raw = raw_body(row)
            path, body = self._rules.read(row, raw)
            name, engine = await self._engine_of(body.model)
            job = await worked_on(raw, path.job, body, engine.llm)
            answers = Answers.begin(job, engine, is_whole=True)
            self.on_begin(answers)
            document = await path.whole(answers, Head(path.prefix, name), engine.llm.model.vocabulary)
        except Exception as error:
            return self._failed(error)
        self._n_faults = 0
        return Result(200, document)

    def _failed(self, error: Exception) -> Result:
        failure = failure_of(error)
        if failure.code == "stopping":
            raise BackendError("the model was closed", hint="run the same command again")
        if failure.status == 500:
            LOGGER.error("a row failed: %s", error, exc_info=error if failure.code == "internal_error" else None)
            self._n_faults += 1
            if self._n_faults > _MOST_IN_A_ROW * self.n_in_flight:
                raise BackendError(failure.message, hint="run the same command again with --retry-errors")
        return failed(failure)


def failed(failure: Failure) -> Result:
    """The result that says what went wrong."""
    return Result(failure.status, failure.as_json())
