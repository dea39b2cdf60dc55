"""Who may ask: the Host header, the origin of a page, and the key, before anything of a request is read."""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mimo_gguf.core.log import LOGGER
from mimo_gguf.core.unguessable import unguessable_name
from mimo_gguf.server.anthropic_form import failure_json
from mimo_gguf.server.asking import asking
from mimo_gguf.server.failures import Failure
from mimo_gguf.server.page.files import FILES
from mimo_gguf.server.settings import Settings, digest

_PORTS: Final = {"http": 80, "https": 443}  # that an origin leaves out
OPEN_PATHS: Final = frozenset({"/health", *FILES})  # that need no key: the page asks for it
_METHODS: Final = "GET, POST, DELETE, OPTIONS"
_UNAUTHORIZED: Final = Failure(401, "no valid API key: Authorization: Bearer KEY", code="invalid_api_key")
_WRONG_HOST: Final = Failure(403, "this Host is not served here", code="forbidden_host")
_WRONG_ORIGIN: Final = Failure(403, "pages of this origin may not ask: --cors-origin", code="forbidden_origin")


class Guard:
    """ASGI middleware that lets a request through, or answers it with what is missing. It names and logs each one."""

    def __init__(self, app: ASGIApp, settings: Settings, on_end: Callable[[str, int, float], None]) -> None:
        """Makes the guard of `app`. `on_end` is called with path, status and seconds of each request."""
        self._app, self._settings, self._on_end = app, settings, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers, began = Headers(scope=scope), time.perf_counter()
        request_id = scope["request_id"] = unguessable_name("req_", 8)
        origin = headers.get("origin")
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                if origin is not None and self._is_allowed(origin, headers):
                    out["access-control-allow-origin"] = origin
                    out["vary"] = "Origin"
            await send(message)

        if scope["type"] != "http":
            return
        refused = self._refusal(scope, headers, origin)
        if refused is not None:
            await _send_failure(refused, scope["path"], send_named)
        elif scope["method"] == "OPTIONS" and origin is not None:
            await _send_preflight(headers, send_named)
        else:
            with asking(_client_of(scope, headers, keyed=bool(self._settings.api_keys))):
                await self._app(scope, receive, send_named)
        seconds = time.perf_counter() - began
        self._on_end(scope["path"], status, seconds)
        LOGGER.info("%s %s %r %d %.3f s", request_id, scope["method"], scope["path"], status, seconds)

    def _refusal(self, scope: Scope, headers: Headers, origin: str | None) -> Failure | None:
        """The failure of a request that may not pass; None if it may."""
        keys = self._settings.api_keys
        if not keys and not _is_our_host(headers.get("host", ""), self._settings.host):
            return _WRONG_HOST
        if origin is not None and not self._is_allowed(origin, headers):
            return _WRONG_ORIGIN
        if keys and scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS" and not _has_key(headers, keys):
            return _UNAUTHORIZED
        return None

    def _is_allowed(self, origin: str, headers: Headers) -> bool:
        """Whether pages of an origin may ask: those that this server gave, and those that were allowed."""
        allowed = self._settings.cors_origins
        return "*" in allowed or origin in allowed or _is_of_host(origin, headers.get("host", ""))


def _is_of_host(origin: str, host: str) -> bool:
    """Whether an origin is the one of a page that was given under this Host header."""
    try:
        given, asked = urlsplit(origin), urlsplit(f"{urlsplit(origin).scheme}://{host}")
        port = _PORTS[given.scheme]
        ours = (asked.hostname, asked.port or port)
        return bool(given.hostname) and given.username is None and (given.hostname, given.port or port) == ours
    except (KeyError, ValueError):  # "null", or brackets and ports that are none
        return False


def _is_our_host(header: str, bound: str) -> bool:
    """Whether a Host header names this machine: a name of a stranger's domain may point here (DNS rebinding).

    An address is no such name. Only a name can be changed to point elsewhere while a page is open.
    """
    try:
        parts = urlsplit(f"//{header}")
        name = (parts.hostname or "").rstrip(".")
        if parts.port == 0 or parts.path or parts.username is not None:
            return False
    except ValueError:  # a port or a bracket that is none
        return False
    if name in {"localhost", bound.lower(), socket.gethostname().lower()}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _client_of(scope: Scope, headers: Headers, *, keyed: bool) -> str:
    """Whose a request is: its key's, or without keys its program's, as far as address and name tell."""
    if keyed:
        return " ".join(digest(key).hex() for key in _given_keys(headers))
    host, _ = scope.get("client") or ("", 0)
    return f"{host} {headers.get('user-agent', '')[:200]}"


def _given_keys(headers: Headers) -> list[str]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [token.strip()] if scheme.lower() == "bearer" else []
    return given + ([headers["x-api-key"]] if "x-api-key" in headers else [])


def _has_key(headers: Headers, keys: Sequence[bytes]) -> bool:
    """Whether a request has one of the keys. Each is compared in constant time, and all are compared."""
    found = False
    for each in _given_keys(headers):
        for key in keys:
            found |= hmac.compare_digest(digest(each), key)
    return found


async def _send_failure(failure: Failure, path: str, send: Send) -> None:
    document = failure_json(failure) if path.startswith("/v1/messages") else failure.as_json()
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if failure.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_preflight(headers: Headers, send: Send) -> None:
    wanted = headers.get("access-control-request-headers", "*")
    answer = [
        (b"access-control-allow-methods", _METHODS.encode()),
        (b"access-control-allow-headers", wanted.encode("latin-1")),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})
