"""Data sets on a Hugging Face Hub on loopback: the fake hub of conversion, which serves models, under `/datasets/`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.conversion import fake_hub


class _Handler(fake_hub._Handler):
    """Answers for data sets as the parent does for models, at any commit."""

    def _answer(self) -> None:
        is_data = urlsplit(self.path).path.startswith("/datasets/")
        self.path = self.path.replace("/datasets/", "/", 1) if is_data else "/models-are-not-served"
        super()._answer()

    def _repository(self, name: str, revision: str | None) -> Path | None:
        self.revision = revision if revision is not None and len(revision) == 40 else None
        return super()._repository(name, None if self.revision else revision)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], *, stop_at: int | None = None) -> None:
        headers = dict(headers)
        if "X-Repo-Commit" in headers and self.revision:
            headers["X-Repo-Commit"] = self.revision
        super()._send(status, data, headers, stop_at=stop_at)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: fake_hub.FakeHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


@contextmanager
def serve_data(repositories: dict[str, Path]) -> Iterator[fake_hub.FakeHub]:
    """A running hub; `hub.endpoint` is what HF_ENDPOINT must be."""
    hub = fake_hub.FakeHub(repositories)
    server = _Server(hub)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
