"""The ASGI application: the server's paths, and what guards them."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mimo_gguf.server.anthropic_api import AnthropicApi
from mimo_gguf.server.api import Api, failed
from mimo_gguf.server.failures import Failure
from mimo_gguf.server.files_api import FilesApi
from mimo_gguf.server.guard import Guard
from mimo_gguf.server.looking import detokenized, templated, tokenized
from mimo_gguf.server.models import Models
from mimo_gguf.server.page.routes import PageApi
from mimo_gguf.server.requests import DetokenizeBody, TemplateBody, TokenizeBody
from mimo_gguf.server.responses_api import ResponsesApi
from mimo_gguf.server.settings import Settings


def make_app(models: Models, settings: Settings) -> Starlette:
    """The ASGI application of some models."""
    api = Api(models, settings)
    routes = [
        Route("/health", api.health, methods=["GET"]),
        Route("/v1/models", api.list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", api.model, methods=["GET"]),
        Route("/v1/chat/completions", api.chat_completions, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/tokenize", api.lookup(TokenizeBody, tokenized), methods=["POST"]),
        Route("/detokenize", api.lookup(DetokenizeBody, detokenized), methods=["POST"]),
        Route("/apply-template", api.lookup(TemplateBody, templated), methods=["POST"]),
        Route("/tokenizer_info", api.tokenizer_info, methods=["GET"]),
        Route("/props", api.props, methods=["GET"]),
        Route("/metrics", api.metrics, methods=["GET"]),
        Route("/openapi.json", api.openapi, methods=["GET"]),
        *ResponsesApi(api).routes,
        *AnthropicApi(api).routes,
        *PageApi(api).routes,
    ]
    lifespan = None
    if settings.files_dir is not None:
        files = FilesApi(api, settings.files_dir, settings.n_batch_rows, settings.files_bytes)
        routes += files.routes
        lifespan = files.running
    api.counts.paths = frozenset(route.path for route in routes)
    guard = Middleware(Guard, settings=settings, on_end=api.counts.note_request)
    handlers: Any = {HTTPException: _no_such_path, Exception: _unforeseen}
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[guard], lifespan=lifespan)


async def _no_such_path(request: Request, error: HTTPException) -> Response:
    what = "no such path" if error.status_code == 404 else error.detail.lower()
    if request.url.path.startswith(("/v1/files", "/v1/batches")):
        what = "this server keeps no files (--files-dir)" if error.status_code == 404 else what
    failure = Failure(error.status_code, f"{what}: {request.method} {request.url.path[:200]}", code="not_found")
    return JSONResponse(failure.as_json(), failure.status, error.headers)


async def _unforeseen(request: Request, error: Exception) -> Response:
    return failed(error)
