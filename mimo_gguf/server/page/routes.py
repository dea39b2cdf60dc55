"""The page's paths: its files, the answers that it shows, and texts that it wants rendered."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mimo_gguf.runtime.llm import LLM
from mimo_gguf.server.answers import Answers
from mimo_gguf.server.api import Api
from mimo_gguf.server.bodies import read_body
from mimo_gguf.server.engine import Engine
from mimo_gguf.server.failures import failure_of, refusal
from mimo_gguf.server.jobs import Job, chat_job
from mimo_gguf.server.page.answering import PageAnswer, begun_answer, inside_thinking
from mimo_gguf.server.page.files import FILES, HEADERS
from mimo_gguf.server.page.growing import render
from mimo_gguf.server.requests import Body, ChatBody
from mimo_gguf.server.streams import event_lines

_MOST: Final = 4_000_000  # characters that are rendered at a time


class RenderBody(Body):
    """The body of `/page/render`."""

    texts: Annotated[list[str], Field(max_length=1000)]


class PageApi:
    """What the page's paths do."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.routes = [
            *(Route(path, _file, methods=["GET"]) for path in FILES),
            Route("/page/chat", self.chat, methods=["POST"]),
            Route("/page/render", self.render, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        """`POST /page/chat`: the body of `/v1/chat/completions`, answered in events with rendered blocks."""
        return await self._api.answer(request, self._chat)

    async def render(self, request: Request) -> Response:
        """`POST /page/render`: texts as blocks of HTML."""
        return await self._api.answer(request, _rendered)

    async def _chat(self, raw: bytes) -> Response:
        body, use = await self._api.read(ChatBody, raw)
        job, thinking, text = await asyncio.to_thread(_job, body, use.llm)
        head = {"model": use.name, "waiting": _n_before(use.engine)}
        answer = PageAnswer(Answers.begin(job, use.engine), use.llm.model.session.window)
        answer.thinking.add(thinking)
        answer.text.add(text)
        lines = event_lines(answer.events(head), lambda error: {"type": "failed", **failure_of(error).as_json()})
        return await self._api.stream(lines)


def _n_before(engine: Engine) -> int:
    """The number of answers of which one has to end before the next request gets a slot; 0 if one is free."""
    return engine.n_waiting + 1 if engine.n_running >= engine.n_parallel else 0


def _job(body: ChatBody, llm: LLM) -> tuple[Job, str, str]:
    """The job of a body, and the thinking and text that its answer goes on from."""
    thinking, text = begun_answer(body)
    job = chat_job(body, llm)
    return inside_thinking(job) if thinking and not text else job, thinking, text


async def _file(request: Request) -> Response:
    file = FILES[request.url.path]
    headers = HEADERS | {"ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers | {"Content-Type": file.kind})


async def _rendered(raw: bytes) -> Response:
    body = await asyncio.to_thread(read_body, RenderBody, raw)
    if sum(map(len, body.texts)) > _MOST:
        raise refusal(413, f"the texts have more than {_MOST} characters", code="body_too_long", param="texts")
    return JSONResponse({"blocks": await asyncio.to_thread(lambda: [render(text) for text in body.texts])})
