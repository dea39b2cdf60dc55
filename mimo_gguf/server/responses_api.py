"""What OpenAI's path of responses does."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mimo_gguf.server.answers import Answers
from mimo_gguf.server.api import Api
from mimo_gguf.server.failures import failure_of
from mimo_gguf.server.jobs import chat_job
from mimo_gguf.server.responses_form import response_events, whole_response
from mimo_gguf.server.responses_requests import ResponsesBody, response_as_chat
from mimo_gguf.server.streams import event_lines


class ResponsesApi:
    """`/v1/responses`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    @property
    def routes(self) -> list[Route]:
        """The paths."""
        return [Route("/v1/responses", self.responses, methods=["POST"])]

    async def responses(self, request: Request) -> Response:
        """`POST /v1/responses`."""
        return await self._api.answer(request, self._respond)

    async def _respond(self, raw: bytes) -> Response:
        body, use = await self._api.read(ResponsesBody, raw)
        job = await asyncio.to_thread(lambda: chat_job(response_as_chat(body), use.llm))
        answers = Answers.begin(job, use.engine)
        if not body.stream:
            return JSONResponse(await whole_response(answers, body, use.name))
        return await self._api.stream(event_lines(response_events(answers, body, use.name), _failed))


def _failed(error: Exception) -> dict[str, Any]:
    failure = failure_of(error)
    return {"type": "error", "code": failure.code, "message": failure.message, "param": failure.param}
