"""What Anthropic's paths do."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.answers import Answers
from mimo_gguf.server.anthropic_form import failure_json, message_events, whole_message
from mimo_gguf.server.anthropic_requests import CountBody, MessagesBody, as_chat
from mimo_gguf.server.api import Api
from mimo_gguf.server.bodies import worked_on
from mimo_gguf.server.failures import failure_of
from mimo_gguf.server.jobs import Job, chat_job, chat_prompt
from mimo_gguf.server.streams import event_lines


class AnthropicApi:
    """`/v1/messages` and `/v1/messages/count_tokens`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    @property
    def routes(self) -> list[Route]:
        """The paths."""
        return [
            Route("/v1/messages", self.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count_tokens, methods=["POST"]),
        ]

    async def messages(self, request: Request) -> Response:
        """`POST /v1/messages`."""
        return await self._api.answer(request, self._message, failure_json)

    async def count_tokens(self, request: Request) -> Response:
        """`POST /v1/messages/count_tokens`."""
        return await self._api.answer(request, self._count, failure_json)

    async def _message(self, raw: bytes) -> Response:
        body, use = await self._api.read(MessagesBody, raw)
        job = await worked_on(raw, _job, body, use.llm)
        answers = Answers.begin(job, use.engine, is_whole=not body.stream)
        if not body.stream:
            return JSONResponse(await whole_message(answers, use.name, shows_reasoning=body.shows_thinking))
        events = message_events(answers, use.name, shows_reasoning=body.shows_thinking)
        return await self._api.stream(event_lines(events, _failed))

    async def _count(self, raw: bytes) -> Response:
        body, use = await self._api.read(CountBody, raw)
        return JSONResponse({"input_tokens": await worked_on(raw, _n_tokens, body, use.llm)})


def _job(body: MessagesBody, llm: LLM) -> Job:
    return chat_job(as_chat(body), llm)


def _n_tokens(body: CountBody, llm: LLM) -> int:
    return len(llm.model.vocabulary.tokenize(chat_prompt(as_chat(body), llm)))


def _failed(error: Exception) -> dict[str, Any]:
    return failure_json(failure_of(error))
