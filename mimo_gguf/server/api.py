"""What OpenAI's paths do with a request: read the body, make a job, send the answer in its form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mimo_gguf.core.log import LOGGER
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.answers import Answers
from mimo_gguf.server.chat_form import Head, chat_chunks, whole_chat
from mimo_gguf.server.completion_form import completion_chunks, whole_completion
from mimo_gguf.server.engine import Engine
from mimo_gguf.server.failures import Failure, failure_of, refusal
from mimo_gguf.server.jobs import Job, chat_job, completion_job
from mimo_gguf.server.looking import properties, tokenizer_info
from mimo_gguf.server.metrics import CONTENT_TYPE, Metrics
from mimo_gguf.server.requests import ChatBody, CompletionBody, DetokenizeBody, Drawing, TemplateBody, TokenizeBody
from mimo_gguf.server.settings import Settings
from mimo_gguf.server.streams import ClientGone, EventStream, data_lines, until_gone, with_comments

Work = Callable[[bytes], Coroutine[Any, Any, Response]]
FailureForm = Callable[[Failure], dict[str, Any]]
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
B = TypeVar("B", TokenizeBody, DetokenizeBody, TemplateBody)


class Api:
    """What the paths do. One object for one model."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.counts = Metrics(engine)

    # ---- paths

    async def chat_completions(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self.answer(request, self._chat)

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self.answer(request, self._completion)

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [self._describe(name) for name in self.settings.names]})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        try:
            return JSONResponse(self._describe(self.name(request.path_params["name"])))
        except Exception as error:
            return failed(error)

    async def health(self, request: Request) -> Response:
        """`GET /health`."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.counts.text(), media_type=CONTENT_TYPE)

    async def props(self, request: Request) -> Response:
        """`GET /props`."""
        return JSONResponse(properties(self.engine.llm, self.settings.names))

    async def tokenizer_info(self, request: Request) -> Response:
        """`GET /tokenizer_info`."""
        return JSONResponse(tokenizer_info(self.engine.llm))

    def lookup(self, kind: type[B], look: Callable[[B, LLM], dict[str, Any]]) -> Endpoint:
        """The endpoint of a path whose answer `look` makes of a body and the model, without generating."""

        def read(raw: bytes) -> dict[str, Any]:
            body = kind.model_validate_json(raw)
            self.name(body.model)
            return look(body, self.engine.llm)

        async def work(raw: bytes) -> Response:
            return JSONResponse(await asyncio.to_thread(read, raw))

        async def endpoint(request: Request) -> Response:
            return await self.answer(request, work)

        return endpoint

    # ---- what they share

    async def answer(self, request: Request, work: Work, form: FailureForm = Failure.as_json) -> Response:
        """Reads the body and works with it, until the client goes away. Whatever is raised becomes a failure."""
        try:
            body = await self._read_body(request)
            return await until_gone(request.receive, work(body))
        except (ClientGone, ClientDisconnect):
            return Response(status_code=499)
        except Exception as error:
            return failed(error, form)

    async def _read_body(self, request: Request) -> bytes:
        """The body of a request. Raises Refused if it is not JSON by its header, too long, or too slow."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise refusal(415, "the body must be JSON: Content-Type: application/json", code="not_json")
        most, body = self.settings.body_bytes, bytearray()
        try:
            async with asyncio.timeout(self.settings.body_s):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise refusal(413, f"the body has more than {most} bytes", code="body_too_long")
        except TimeoutError:
            raise refusal(408, "the body did not come in time", code="body_too_slow") from None
        return bytes(body)

    async def _chat(self, raw: bytes) -> Response:
        body, job = await asyncio.to_thread(self._chat_job, raw)
        answers, head = Answers.begin(job, self.engine), Head("chatcmpl", self.name(body.model))
        vocabulary = self.engine.llm.model.vocabulary
        if not body.stream:
            return JSONResponse(await whole_chat(answers, head, vocabulary))
        chunks = chat_chunks(answers, head, vocabulary, with_usage=_wants_usage(body))
        return await self.stream(data_lines(chunks))

    def _chat_job(self, raw: bytes) -> tuple[ChatBody, Job]:
        body = ChatBody.model_validate_json(raw)
        self.name(body.model)
        return body, chat_job(body, self.engine.llm)

    async def _completion(self, raw: bytes) -> Response:
        body, job = await asyncio.to_thread(self._completion_job, raw)
        answers, head = Answers.begin(job, self.engine), Head("cmpl", self.name(body.model))
        vocabulary = self.engine.llm.model.vocabulary
        if not body.stream:
            return JSONResponse(await whole_completion(answers, head, vocabulary))
        chunks = completion_chunks(answers, head, vocabulary, with_usage=_wants_usage(body))
        return await self.stream(data_lines(chunks))

    def _completion_job(self, raw: bytes) -> tuple[CompletionBody, Job]:
        body = CompletionBody.model_validate_json(raw)
        self.name(body.model)
        return body, completion_job(body, self.engine.llm)

    async def stream(self, lines: AsyncGenerator[str, None]) -> Response:
        """The response that streams. It waits for the first line, so that a failure still has its status."""
        commented = with_comments(lines, self.settings.keep_alive_s)
        return EventStream(await anext(commented), commented)

    def name(self, wanted: str | None) -> str:
        """The name under which a request is answered. Raises Refused for a model that is not here."""
        names = self.settings.names
        if not wanted:
            return names[0]
        if wanted not in names:
            message = f"no model {wanted[:100]!r} here; there is {', '.join(names)}"
            raise refusal(404, message, code="model_not_found", param="model")
        return wanted

    def _describe(self, name: str) -> dict[str, Any]:
        model = self.engine.llm.model
        created = int(model.file.path.stat().st_mtime)
        described = {"id": name, "object": "model", "created": created, "owned_by": "mimo-gguf"}
        return described | {"max_model_len": model.session.window, "mtp": model.has_mtp}


def failed(error: Exception, form: FailureForm = Failure.as_json) -> Response:
    """The response that says what went wrong. What nobody foresaw is logged whole."""
    failure = failure_of(error)
    if failure.status == 500:
        LOGGER.error("a request failed", exc_info=error)
    return JSONResponse(form(failure), failure.status, failure.headers)


def _wants_usage(body: Drawing) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)
