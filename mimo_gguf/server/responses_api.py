"""What OpenAI's paths of responses do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.answers import Answers
from mimo_gguf.server.api import Api, failed
from mimo_gguf.server.blocks import Blocks
from mimo_gguf.server.failures import failure_of
from mimo_gguf.server.jobs import Job, chat_job
from mimo_gguf.server.response_store import ResponseStore, Stored
from mimo_gguf.server.responses_form import ResponseDocument, response_events, whole_response
from mimo_gguf.server.responses_requests import ResponsesBody, answer_messages, input_items, response_as_chat
from mimo_gguf.server.streams import event_lines
from mimo_gguf.server.token_scores import TextScores

Messages = tuple[dict[str, Any], ...]


class ResponsesApi:
    """`/v1/responses`, and the responses that are kept."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._store = ResponseStore()

    @property
    def routes(self) -> list[Route]:
        """The paths."""
        return [
            Route("/v1/responses", self.responses, methods=["POST"]),
            Route("/v1/responses/{name}", self.one, methods=["GET"]),
            Route("/v1/responses/{name}", self.forget, methods=["DELETE"]),
            Route("/v1/responses/{name}/input_items", self.items, methods=["GET"]),
        ]

    async def responses(self, request: Request) -> Response:
        """`POST /v1/responses`."""
        return await self._api.answer(request, self._respond)

    async def one(self, request: Request) -> Response:
        """`GET /v1/responses/NAME`."""
        try:
            return JSONResponse(self._store.get(request.path_params["name"]).document)
        except Exception as error:
            return failed(error)

    async def forget(self, request: Request) -> Response:
        """`DELETE /v1/responses/NAME`."""
        name = request.path_params["name"]
        try:
            self._store.remove(name)
            return JSONResponse({"id": name, "object": "response", "deleted": True})
        except Exception as error:
            return failed(error)

    async def items(self, request: Request) -> Response:
        """`GET /v1/responses/NAME/input_items`: newest first, as OpenAI lists them."""
        try:
            found = list(reversed(self._store.get(request.path_params["name"]).items))
        except Exception as error:
            return failed(error)
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]}  # an input has at least one item
        return JSONResponse({"object": "list", "data": found, **ends, "has_more": False})

    async def _respond(self, raw: bytes) -> Response:
        body, use = await self._api.read(ResponsesBody, raw)
        before = self._store.conversation(body.previous_response_id)
        messages, job = await asyncio.to_thread(_job, body, before, use.llm)
        vocabulary, prompt = use.llm.model.vocabulary, job.asked[0].prompt
        scored = TextScores(vocabulary, inside=prompt.opened is not None, with_calls=job.tools is not None)
        blocks = Blocks(scored=scored if body.wants_scores else None)
        document = ResponseDocument(body, use.name, vocabulary, blocks)
        is_whole = not (body.stream or body.wants_scores)  # scores belong to the pieces that they came with
        answers = Answers.begin(job, use.engine, is_whole=is_whole)
        if not body.stream:
            whole = await whole_response(answers, document)
            self._keep(document, whole, messages)
            return JSONResponse(whole)
        return await self._api.stream(event_lines(self._kept_events(answers, document, messages), _failed))

    async def _kept_events(
        self, answers: Answers, document: ResponseDocument, messages: Messages
    ) -> AsyncGenerator[dict[str, Any], None]:
        async for event in response_events(answers, document):
            if event["type"] in ("response.completed", "response.incomplete"):
                self._keep(document, event["response"], messages)
            yield event

    def _keep(self, document: ResponseDocument, whole: dict[str, Any], messages: Messages) -> None:
        if document.body.store is not False:
            said = answer_messages(document.blocks)
            self._store.put(Stored(whole, input_items(document.body), (*messages, *said)))


def _job(body: ResponsesBody, before: Messages, llm: LLM) -> tuple[Messages, Job]:
    messages, chat = response_as_chat(body, before)
    return messages, chat_job(chat, llm)


def _failed(error: Exception) -> dict[str, Any]:
    failure = failure_of(error)
    return {"type": "error", "code": failure.code, "message": failure.message, "param": failure.param}
