"""What OpenAI's paths of files and batches do."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from mimo_gguf.core.file_lock import locked_folder
from mimo_gguf.core.output_file import free_bytes, make_folder
from mimo_gguf.server.api import Api, failed
from mimo_gguf.server.batch_requests import BATCHES_MOST, FILES_MOST, PURPOSES, WINDOW, BatchBody
from mimo_gguf.server.batch_runner import BatchRunner
from mimo_gguf.server.batch_store import Batch, BatchStore
from mimo_gguf.server.bodies import read_body
from mimo_gguf.server.failures import refusal
from mimo_gguf.server.file_store import FileStore, new_file_id
from mimo_gguf.server.multipart import Upload
from mimo_gguf.server.row_answers import PATHS
from mimo_gguf.server.spare_slots import SpareSlots

_WINDOW: Final = re.compile(WINDOW)
_SECONDS: Final = {"h": 3600, "d": 86400}
_KEPT_FREE: Final = 64 << 20  # bytes of the disk that no upload takes
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class FilesApi:
    """`/v1/files` and `/v1/batches`, for a server that was given a folder for them."""

    def __init__(self, api: Api, folder: Path, n_parallel: int, most_bytes: int) -> None:
        """Opens the folder. Raises OutputError if that cannot be.

        Args:
            folder: a folder of this server's own: see `files_folder`.
            n_parallel: rows that are answered at a time.
            most_bytes: the largest upload.
        """
        self._api, self._folder, self._most_bytes = api, folder, most_bytes
        self.files = FileStore(folder / "files")
        self.batches = BatchStore(folder / "batches")
        self.runner = BatchRunner(self.files, self.batches, SpareSlots(api.models, n_parallel))

    @property
    def routes(self) -> list[Route]:
        """The paths."""
        return [
            Route("/v1/files", _guarded(self.upload), methods=["POST"]),
            Route("/v1/files", _guarded(self.list_files), methods=["GET"]),
            Route("/v1/files/{id}", _guarded(self.file), methods=["GET"]),
            Route("/v1/files/{id}", _guarded(self.delete), methods=["DELETE"]),
            Route("/v1/files/{id}/content", _guarded(self.content), methods=["GET"]),
            Route("/v1/batches", self.create, methods=["POST"]),
            Route("/v1/batches", _guarded(self.list_batches), methods=["GET"]),
            Route("/v1/batches/{id}", _guarded(self.batch), methods=["GET"]),
            Route("/v1/batches/{id}/cancel", _guarded(self.cancel), methods=["POST"]),
        ]

    @contextlib.asynccontextmanager
    async def running(self, app: object = None) -> AsyncIterator[None]:
        """Answers batches until the end of the block."""
        self.runner.start()
        try:
            yield
        finally:
            await self.runner.stop()

    # ---- files

    async def upload(self, request: Request) -> Response:
        """`POST /v1/files`."""
        file_id, size = new_file_id(), 0
        with self.files.writing(file_id) as file:
            upload = Upload(request.headers.get("content-type", ""), file.write)
            async for piece in request.stream():
                size += len(piece)
                if size > self._most_bytes:
                    raise refusal(413, f"the file has more than {self._most_bytes} bytes", code="file_too_long")
                if free_bytes(self._folder) < _KEPT_FREE + len(piece):
                    raise refusal(507, "no space left for files", code="disk_full")
                upload.feed(piece)
            upload.finish()
            purpose = upload.fields.get("purpose", "")
            if purpose not in PURPOSES:
                raise refusal(400, f"purpose is {purpose[:40]!r}", code="invalid_value", param="purpose")
        return JSONResponse(await asyncio.to_thread(self.files.add, file_id, upload.filename or "", purpose))

    async def list_files(self, request: Request) -> Response:
        """`GET /v1/files`."""
        purpose = request.query_params.get("purpose")
        found = [each for each in self.files.list() if purpose in (None, each["purpose"])]
        return JSONResponse(_page(found, request, lambda each: str(each["id"]), most=FILES_MOST))

    async def file(self, request: Request) -> Response:
        """`GET /v1/files/ID`."""
        return JSONResponse(self.files.find(request.path_params["id"]))

    async def content(self, request: Request) -> Response:
        """`GET /v1/files/ID/content`."""
        path = self.files.path(request.path_params["id"])
        return FileResponse(path, media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        """`DELETE /v1/files/ID`."""
        file_id = self.files.find(request.path_params["id"])["id"]
        if self.runner.uses(file_id):
            raise refusal(409, "a batch still reads this file", code="file_in_use")
        self.files.delete(file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    # ---- batches

    async def create(self, request: Request) -> Response:
        """`POST /v1/batches`."""

        async def work(raw: bytes) -> Response:
            body = read_body(BatchBody, raw)
            if body.endpoint not in PATHS:
                message = f"endpoint is {body.endpoint[:60]!r}; batches are for {', '.join(PATHS)}"
                raise refusal(400, message, code="invalid_value", param="endpoint")
            window = _WINDOW.fullmatch(body.completion_window)
            if window is None:
                raise refusal(400, "completion_window is not like 24h", code="invalid_value", param="completion_window")
            seconds = int(window[1]) * _SECONDS[window[2]]
            batch = Batch(body.endpoint, body.input_file_id, body.completion_window, seconds, body.metadata)
            return JSONResponse(self.runner.create(batch).as_json())

        return await self._api.answer(request, work)

    async def list_batches(self, request: Request) -> Response:
        """`GET /v1/batches`."""
        page = _page(self.batches.list(), request, lambda each: each.id, most=BATCHES_MOST)
        return JSONResponse(page | {"data": [self.runner.described(each) for each in page["data"]]})

    async def batch(self, request: Request) -> Response:
        """`GET /v1/batches/ID`."""
        return JSONResponse(self.runner.described(self.batches.find(request.path_params["id"])))

    async def cancel(self, request: Request) -> Response:
        """`POST /v1/batches/ID/cancel`."""
        return JSONResponse(self.runner.cancel(request.path_params["id"]).as_json())


@contextlib.contextmanager
def files_folder(folder: str | Path | None) -> Iterator[Path | None]:
    """The folder, made if it is missing, which no other server can use meanwhile; None stays None.

    Raises:
        OutputError: another one uses it, or it cannot be written.
    """
    if folder is None:
        yield None
        return
    make_folder(Path(folder))
    with locked_folder(Path(folder), ".lock"):
        yield Path(folder)


def _guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose failures become answers."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            return failed(error)

    return guarded


def _page(found: Sequence[Any], request: Request, name: Callable[[Any], str], *, most: int) -> dict[str, Any]:
    """A page of a list, as OpenAI gives it. Raises Refused if the request asks for none of its pages."""
    query = request.query_params
    limit = query.get("limit", "20" if most == BATCHES_MOST else str(most))
    if not limit.isdecimal() or not 1 <= int(limit) <= most:
        raise refusal(400, f"limit must be 1 to {most}", code="invalid_value", param="limit")
    if query.get("order", "desc") == "asc":
        found = list(reversed(found))
    names = [name(each) for each in found]
    after = query.get("after")
    if after is not None and after not in names:
        raise refusal(400, f"nothing is called {after[:60]!r} here", code="invalid_value", param="after")
    first = names.index(after) + 1 if after is not None else 0
    page = found[first : first + int(limit)]
    return {
        "object": "list", "data": list(page), "has_more": first + len(page) < len(found),
        "first_id": name(page[0]) if page else None, "last_id": name(page[-1]) if page else None,
    }  # fmt: skip
