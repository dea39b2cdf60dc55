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
from mimo_gguf.server.bodies import read_body, worked_on
from mimo_gguf.server.chat_form import Head, chat_chunks, whole_chat
from mimo_gguf.server.completion_form import completion_chunks, whole_completion
from mimo_gguf.server.failures import Failure, failure_of, refusal
from mimo_gguf.server.jobs import chat_job, completion_job
from mimo_gguf.server.looking import properties, tokenizer_info
from mimo_gguf.server.metrics import CONTENT_TYPE, Metrics
from mimo_gguf.server.models import Models, Served, Use
from mimo_gguf.server.openapi import openapi_document
from mimo_gguf.server.requests import ChatBody, CompletionBody, Drawing, ModelBody
from mimo_gguf.server.settings import Settings
from mimo_gguf.server.streams import ClientGone, EventStream, data_lines, until_gone

Work = Callable[[bytes], Coroutine[Any, Any, Response]]
FailureForm = Callable[[Failure], dict[str, Any]]
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
B = TypeVar("B", bound=ModelBody)


class Api:
    """What the paths do."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings = models, settings
        self.counts = Metrics(models)

    # ---- paths

    async def chat_completions(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self.answer(request, self._chat)

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self.answer(request, self._completion)

    async def list_models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        data = [described(name, served) for served in self.models.all for name in served.names]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        name = request.path_params["name"]
        try:
            return JSONResponse(described(name, self.models.find(name)))
        except Exception as error:
            return failed(error)

    async def health(self, request: Request) -> Response:
        """`GET /health`."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.counts.text(), media_type=CONTENT_TYPE)

    async def props(self, request: Request) -> Response:
        """`GET /props?model=NAME`."""
        return await self._tell(request, lambda use: properties(use.llm, use.names))

    async def tokenizer_info(self, request: Request) -> Response:
        """`GET /tokenizer_info?model=NAME`."""
        return await self._tell(request, lambda use: tokenizer_info(use.llm))

    async def _tell(self, request: Request, look: Callable[[Use], dict[str, Any]]) -> Response:
        try:
            return JSONResponse(look(await self.models.use(request.query_params.get("model"))))
        except Exception as error:
            return failed(error)

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return JSONResponse(openapi_document(self.models.names[0], keeps_files=self.settings.files_dir is not None))

    def lookup(self, kind: type[B], look: Callable[[B, LLM], dict[str, Any]]) -> Endpoint:
        """The endpoint of a path whose answer `look` makes of a body and the model, without generating."""

        async def work(raw: bytes) -> Response:
            body, use = await self.read(kind, raw)
            return JSONResponse(await asyncio.to_thread(look, body, use.llm))

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
        """The body of a request. Raises Refused if it is not plain JSON by its headers, too long, or too slow."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise refusal(415, "the body must be JSON: Content-Type: application/json", code="not_json")
        if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise refusal(415, "the body is compressed: send it as it is", code="compressed_body")
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

    async def read(self, kind: type[B], raw: bytes) -> tuple[B, Use]:
        """A body, and the model that it asks for. Raises ValidationError, and Refused as `Models.use`."""
        body = await worked_on(raw, read_body, kind, raw)
        return body, await self.models.use(body.model)

    async def _chat(self, raw: bytes) -> Response:
        body, use = await self.read(ChatBody, raw)
        job = await worked_on(raw, chat_job, body, use.llm)
        answers, head = Answers.begin(job, use.engine, is_whole=not body.stream), Head("chatcmpl", use.name)
        vocabulary = use.llm.model.vocabulary
        if not body.stream:
            return JSONResponse(await whole_chat(answers, head, vocabulary))
        chunks = chat_chunks(answers, head, vocabulary, with_usage=_wants_usage(body))
        return await self.stream(data_lines(chunks))

    async def _completion(self, raw: bytes) -> Response:
        body, use = await self.read(CompletionBody, raw)
        job = await worked_on(raw, completion_job, body, use.llm)
        answers, head = Answers.begin(job, use.engine, is_whole=not body.stream), Head("cmpl", use.name)
        vocabulary = use.llm.model.vocabulary
        if not body.stream:
            return JSONResponse(await whole_completion(answers, head, vocabulary))
        chunks = completion_chunks(answers, head, vocabulary, with_usage=_wants_usage(body))
        return await self.stream(data_lines(chunks))

    async def stream(self, lines: AsyncGenerator[bytes, None]) -> Response:
        """The response that streams. A failure before the first line still has its status."""
        return await EventStream.begin(lines, self.settings.keep_alive_s)


def described(name: str, served: Served) -> dict[str, Any]:
    """A model in lists: its name, whether it is loaded, and then its window and whether it drafts."""
    model = None if served.engine is None else served.engine.llm.model
    return {
        "id": name,
        "object": "model",
        "created": served.created_s,
        "owned_by": "mimo-gguf",
        "loaded": served.is_loaded,
        "max_model_len": None if model is None else model.session.window,
        "mtp": None if model is None else model.has_mtp,
    }


def failed(error: Exception, form: FailureForm = Failure.as_json) -> Response:
    """The response that says what went wrong. What nobody foresaw is logged whole."""
    failure = failure_of(error)
    if failure.status == 500:
        LOGGER.error("a request failed", exc_info=error)
    return JSONResponse(form(failure), failure.status, failure.headers)


def _wants_usage(body: Drawing) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)
