"""The server's OpenAPI document: its paths from a table, its bodies from their pydantic models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mimo_gguf.core.version import __version__
from mimo_gguf.server.anthropic_requests import CountBody, MessagesBody
from mimo_gguf.server.batch_requests import BATCHES_MOST, FILES_MOST, PURPOSES, BatchBody
from mimo_gguf.server.requests import ChatBody, CompletionBody, DetokenizeBody, TemplateBody, TokenizeBody
from mimo_gguf.server.responses_requests import ResponsesBody

_JSON: Final = "application/json"
_STREAM: Final = "text/event-stream"
_TEXT: Final = "text/plain"
_FORM: Final = "multipart/form-data"
_WHAT_FAILS: Final = {
    400: "A field is wrong, or the prompt is beyond the window",
    401: "A key is missing or wrong",
    403: "This Host is not served here, or pages of this origin may not ask",
    404: "There is no such model, response, file or batch",
    408: "The body did not come in time",
    409: "The file is in use, or the batch has ended",
    413: "The body is too long",
    415: "The body is not plain JSON",
    429: "Too many answers are waiting: come again after Retry-After seconds",
    503: "The server is stopping, or the answer did not begin in time",
    507: "No space is left for files",
}
_BODY: Final = (400, 401, 403, 404, 408, 413, 415, 429, 503)
_READING: Final = (401, 403)  # of requests without a body
_NAMED: Final = (401, 403, 404)
_ERRORS: Final = {"openai": "Error", "anthropic": "AnthropicError"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path of the server.

    Attributes:
        says: one line about it.
        body: the model of its body; None without one.
        gives: the fields that its answer has at least; None for an answer that is not JSON.
        streams: whether `stream` in the body asks for events.
        errors: in whose form its errors are.
        media: what an answer is that is not JSON.
        takes_file: whether a form with a file is its body.
        query: the schemas of the names that may stand in its query.
        fails: the statuses of its errors; None for the usual ones.
    """

    method: str
    path: str
    says: str
    body: type[BaseModel] | None = None
    gives: tuple[str, ...] | None = ()
    streams: bool = False
    errors: str = "openai"
    media: str = _TEXT
    takes_file: bool = False
    query: Mapping[str, Any] = field(default_factory=dict)
    fails: tuple[int, ...] | None = None


def _pages(most: int) -> dict[str, Any]:
    """What the query of a list may have."""
    return {
        "limit": {"type": "integer", "minimum": 1, "maximum": most}, "order": {"enum": ["asc", "desc"]},
        "after": {"type": "string"},
    }  # fmt: skip


ENDPOINTS: Final = (
    Endpoint(
        "POST", "/v1/chat/completions", "Answer a conversation", ChatBody, ("id", "choices", "usage"), streams=True
    ),
    Endpoint("POST", "/v1/completions", "Go on with a text", CompletionBody, ("id", "choices", "usage"), streams=True),
    Endpoint("POST", "/v1/responses", "Answer in OpenAI's newer form", ResponsesBody, ("id", "output"), streams=True),
    Endpoint("GET", "/v1/responses/{name}", "A response that was stored", None, ("id", "output", "status")),
    Endpoint("DELETE", "/v1/responses/{name}", "Forget a response", None, ("id", "deleted")),
    Endpoint("GET", "/v1/responses/{name}/input_items", "The input of a stored response", None, ("data", "has_more")),
    Endpoint(
        "POST", "/v1/messages", "Answer in Anthropic's form", MessagesBody, ("id", "content", "usage"), streams=True,
        errors="anthropic",
    ),
    Endpoint(
        "POST", "/v1/messages/count_tokens", "Count the tokens of a prompt", CountBody, ("input_tokens",),
        errors="anthropic",
    ),
    Endpoint("GET", "/v1/models", "The names of the model", None, ("data",)),
    Endpoint("GET", "/v1/models/{name}", "One of the names", None, ("id", "max_model_len")),
    Endpoint("POST", "/tokenize", "The tokens of a text or a conversation", TokenizeBody, ("tokens", "count")),
    Endpoint("POST", "/detokenize", "The text of tokens", DetokenizeBody, ("content",)),
    Endpoint("POST", "/apply-template", "The prompt of a conversation as text", TemplateBody, ("prompt",)),
    Endpoint("GET", "/tokenizer_info", "The tokenizer and the chat template", None, ("vocab_size", "chat_template")),
    Endpoint("GET", "/props", "Window, slots, drafts, and the memory plan", None, ("n_ctx", "total_slots")),
    Endpoint("GET", "/metrics", "Counts in Prometheus' form", None, None),
    Endpoint("GET", "/health", "Whether the server answers", None, ("status",)),
    Endpoint("GET", "/openapi.json", "This document", None, ("openapi", "paths")),
)  # fmt: skip

# Those of a server that keeps files.
FILE_ENDPOINTS: Final = (
    Endpoint(
        "POST", "/v1/files", "Keep a file", None, ("id", "bytes", "purpose"), takes_file=True,
        fails=(400, 401, 403, 413, 415, 507),
    ),
    Endpoint(
        "GET", "/v1/files", "The files", None, ("data", "has_more"), fails=(400, *_READING),
        query=_pages(FILES_MOST) | {"purpose": {"type": "string"}},
    ),
    Endpoint("GET", "/v1/files/{id}", "What is known of a file", None, ("id", "bytes", "purpose")),
    Endpoint("DELETE", "/v1/files/{id}", "Remove a file", None, ("id", "deleted"), fails=(*_NAMED, 409)),
    Endpoint("GET", "/v1/files/{id}/content", "A file", None, None, media="application/octet-stream"),
    Endpoint("POST", "/v1/batches", "Answer the rows of a file", BatchBody, ("id", "status", "request_counts")),
    Endpoint(
        "GET", "/v1/batches", "The batches", None, ("data", "has_more"), fails=(400, *_READING),
        query=_pages(BATCHES_MOST),
    ),
    Endpoint("GET", "/v1/batches/{id}", "How far a batch is", None, ("id", "status", "request_counts")),
    Endpoint("POST", "/v1/batches/{id}/cancel", "Stop a batch", None, ("id", "status"), fails=(*_NAMED, 409)),
)  # fmt: skip


def openapi_document(model: str, *, keeps_files: bool = False) -> dict[str, Any]:
    """The document in OpenAPI 3.1.

    Args:
        model: the model's name.
        keeps_files: whether there are files and batches.
    """
    endpoints = ENDPOINTS + (FILE_ENDPOINTS if keeps_files else ())
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": f"mimo-gguf serve: {model}", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"] | _error_schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    media: Any = {endpoint.media: {}} if endpoint.gives is None else {_JSON: {"schema": _object(*endpoint.gives)}}
    if endpoint.streams:
        media[_STREAM] = {}
    error = {_JSON: {"schema": _reference(_ERRORS[endpoint.errors])}}
    found: dict[str, Any] = {
        "summary": endpoint.says,
        "responses": {"200": {"description": "The answer", "content": media}}
        | {str(status): {"description": _WHAT_FAILS[status], "content": error} for status in _failing(endpoint)},
    }
    if endpoint.body is not None:
        schema = _reference(endpoint.body.__name__)
        found["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    if endpoint.takes_file:
        found["requestBody"] = {"required": True, "content": {_FORM: {"schema": _upload()}}}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _path_names(endpoint)
    ] + [{"name": name, "in": "query", "schema": schema} for name, schema in endpoint.query.items()]
    return found | ({"parameters": parameters} if parameters else {})


def _path_names(endpoint: Endpoint) -> Sequence[str]:
    return re.findall(r"\{(\w+)\}", endpoint.path)


def _failing(endpoint: Endpoint) -> tuple[int, ...]:
    if endpoint.fails is not None:
        return endpoint.fails
    if endpoint.body is not None:
        return _BODY
    return _NAMED if _path_names(endpoint) else _READING


def _upload() -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    return _object("file", "purpose", file=file, purpose={"enum": sorted(PURPOSES)})


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required)} | ({"properties": properties} if properties else {})


def _error_schemas() -> dict[str, Any]:
    text, maybe = {"type": "string"}, {"type": ["string", "null"]}
    error = _object("message", "type", "param", "code", message=text, type=text, param=maybe, code=maybe)
    theirs = _object("type", "message", type=text, message=text)
    return {
        "Error": _object("error", error=error),
        "AnthropicError": _object("type", "error", type={"const": "error"}, error=theirs),
    }
