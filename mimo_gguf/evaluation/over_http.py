"""Answers rows by asking a server that speaks OpenAI's API: an `Answerer` of the batch loop."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Any, Final

from mimo_gguf.batch.rows import Result, Row
from mimo_gguf.core.errors import BackendError, MimoGgufError, UsageError, first_line

N_IN_FLIGHT: Final = 8
_TRIES: Final = 6
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
KEY: Final = "OPENAI_API_KEY"


def address_of(url: str) -> str:
    """The address of an API's version 1, from what a user types: with or without `/v1`. Raises UsageError."""
    plain = url.rstrip("/")
    if not plain.startswith(("http://", "https://")) or "/" not in plain[7:] + "/":
        raise UsageError(f"{url}: not an address", hint="--url http://127.0.0.1:8080")
    return plain if plain.endswith("/v1") else f"{plain}/v1"


class OverHttp:
    """Asks a server, many rows at a time. A server that is busy or starting again is asked again.

    Attributes:
        n_in_flight: rows in work.
        fingerprint: the address and the model's name.
    """

    def __init__(
        self, url: str, model: str, *, n_in_flight: int = N_IN_FLIGHT, pause_s: float = _FIRST_PAUSE_S
    ) -> None:
        """Makes an answerer for `async with`. `pause_s` is the time until a busy server is first asked again."""
        self.n_in_flight = n_in_flight
        self.fingerprint = f"{url} {model}"
        self._url, self._pause_s = url, pause_s

    async def __aenter__(self) -> OverHttp:
        self._client = _client(self.n_in_flight)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def answer(self, row: Row) -> Result:
        """Asks for one row. Raises BackendError if the server is not there any more, or wants another key."""
        import httpx

        pause_s, why = self._pause_s, ""
        path = str(row.url).removeprefix("/v1")
        for _ in range(_TRIES):
            try:
                said = await self._client.post(self._url + path, json=row.body)
            except httpx.TransportError as error:
                why = first_line(error)
            else:
                if said.status_code in (401, 403):
                    raise BackendError(f"{self._url}: wants another key", hint=f"export {KEY}=...")
                if said.status_code not in _BUSY:
                    return Result(said.status_code, _document(said))
                why = f"status {said.status_code}"
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise BackendError(f"{self._url}: does not answer: {why}", hint="run the same command again, it goes on")


def served_model(url: str, wanted: str | None) -> str:
    """The name under which a server has the model: the wanted one, or its only one.

    Raises:
        BackendError: the server cannot be asked.
        UsageError: it has several models, and none is named.
    """
    import httpx

    if wanted is not None:
        return wanted
    try:
        said = httpx.get(f"{url}/models", headers=_headers(), timeout=30)
        names = [str(each["id"]) for each in said.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise BackendError(f"{url}: cannot be asked for its models: {first_line(error)}", hint="check --url") from None
    if len(names) != 1:
        raise UsageError(
            f"{url}: has {len(names)} models, and none is named",
            hint=f"name one: {', '.join(names)[:200]}" if names else "name the model before --task",
        )
    return names[0]


def check_library() -> None:
    """Raises MimoGgufError if the library that asks is missing."""
    from importlib.util import find_spec

    if find_spec("httpx") is None:
        raise MimoGgufError("--url needs httpx, which is not installed", hint="pip install 'mimo-gguf[evaluate]'")


def _client(n: int) -> Any:
    import httpx

    limits = httpx.Limits(max_connections=n, max_keepalive_connections=n)
    return httpx.AsyncClient(headers=_headers(), timeout=httpx.Timeout(30, read=None), limits=limits)


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _document(said: Any) -> dict[str, Any]:
    try:
        found = said.json()
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return {"error": {"message": f"not JSON: {said.text[:200]!r}", "code": "no_json"}}
