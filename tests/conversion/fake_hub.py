"""A Hugging Face Hub on loopback: model info, file tree, files with ETag and ranges, a broken download if asked.

`rude_hub.py` builds on it: redirects, ModelScope, and every fault that a network has.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
TOKEN = "hub-token"


@dataclass
class FakeHub:
    """The repositories served, and what was asked of them.

    Attributes:
        requests: method, path and range of each request.
        break_after: file name -> bytes sent before the connection drops, once.
        flipped: files of which one bit comes wrong.
        mislabelled: large files whose ETag is the SHA-256 of something else.
        gated: repositories whose terms must be accepted: a request must bring the token.
        bytes_per_s: how fast files are sent.
        on_request: called with the path of each request before it is answered.
        commit: the newest commit of all repositories; `earlier` has the folders of those before it.
    """

    repositories: dict[str, Path]
    endpoint: str = ""
    port: int = 0
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent_bytes: int = 0
    break_after: dict[str, int] = field(default_factory=dict)
    flipped: set[str] = field(default_factory=set)
    mislabelled: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    token: str = TOKEN
    states_digests: bool = True
    bytes_per_s: float | None = None
    on_request: Callable[[str], None] = field(default=lambda path: None)
    commit: str = COMMIT
    earlier: dict[str, Path] = field(default_factory=dict)

    def move(self, name: str, folder: Path, commit: str = NEWER_COMMIT) -> None:
        """Somebody pushes: the branch is now at another commit, with the files in `folder`."""
        self.earlier[self.commit] = self.repositories[name]
        self.repositories[name], self.commit = folder, commit

    def etag_of(self, path: Path) -> str:
        """What the hub says is the file's digest."""
        return hashlib.sha256(b"another").hexdigest() if path.name in self.mislabelled else etag(path)


class HubServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: FakeHub, handler: type[HubHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is nothing to report."""


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._hear()

    def do_GET(self) -> None:
        self._hear()

    def _hear(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.on_request(path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        self.answer(path, (self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def answer(self, path: str, token: str) -> None:
        hub = self.server.hub
        if any(f"/{name}/" in f"{path}/" for name in hub.gated) and token != hub.token:
            self.fail(403, "GatedRepo")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+).*)?", path):
            self._api(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self.fail(404, "EntryNotFound")

    def state_of(self, name: str, revision: str | None) -> tuple[Path, str] | None:
        """The folder and the commit of a repository at a revision; None if there is none, which is answered."""
        hub = self.server.hub
        if name not in hub.repositories:
            self.fail(404, "RepoNotFound")
        elif revision in (None, "main", hub.commit):
            return hub.repositories[name], hub.commit
        elif revision in hub.earlier:
            return hub.earlier[revision], revision
        else:
            self.fail(404, "RevisionNotFound")
        return None

    def _api(self, name: str, kind: str | None, revision: str | None) -> None:
        if (state := self.state_of(name, revision)) is None:
            return
        folder, commit = state
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if kind == "tree":
            answer: object = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": etag(path)}
                for name, path in files.items()
            ]
        else:
            answer = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "downloads": 0,
                      "siblings": [_sibling(name, path) for name, path in files.items()]}  # fmt: skip
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, file_name: str) -> None:
        if (state := self.state_of(name, revision)) is None:
            return
        folder, commit = state
        path = folder / file_name
        if path.is_file():
            self.send_file(name, path, {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"})
        else:
            self.fail(404, "EntryNotFound")

    def send_file(self, name: str, path: Path, headers: Mapping[str, str]) -> None:
        hub = self.server.hub
        digest = {"ETag": f'"{hub.etag_of(path)}"'} if hub.states_digests else {}
        self.send_bytes_of(path, {**headers, **digest})

    def send_bytes_of(self, path: Path, headers: Mapping[str, str]) -> None:
        hub, data = self.server.hub, path.read_bytes()
        if path.name in hub.flipped:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status = 200
        if asked := self.range_of(len(data)):
            first, last = asked
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
            data, status = data[first : last + 1], 206
        self.send(status, data, headers, stop_at=self.stop_at(path))

    def range_of(self, n_bytes: int) -> tuple[int, int] | None:
        """The first and the last byte that are asked for; None if all are."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        return (int(match[1]), min(int(match[2] or n_bytes - 1), n_bytes - 1)) if match else None

    def stop_at(self, path: Path) -> int | None:
        """The number of bytes after which this answer is to break off; None if it is not."""
        return self.server.hub.break_after.pop(path.name, None) if self.command == "GET" else None

    def fail(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def send(
        self, status: int, data: bytes, headers: Mapping[str, str], *, stop_at: int | None = None, drip: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self._write(data[:stop_at], drip)
        if stop_at is not None:
            self.close_connection = True

    def _write(self, data: bytes, drip: bool) -> None:
        hub, speed = self.server.hub, self.server.hub.bytes_per_s
        step = len(data) // 4 if drip else len(data) if speed is None else int(speed / 20)
        for first in range(0, len(data), max(step, 1)):
            self.wfile.write(data[first : first + max(step, 1)])
            hub.sent_bytes += len(data[first : first + max(step, 1)])
            time.sleep(0.001 if drip else 0 if speed is None else 0.05)


def is_large(path: Path) -> bool:
    """Whether git-lfs keeps the file."""
    return path.suffix in (".gguf", ".safetensors")


def etag(path: Path) -> str:
    """The ETag of a file on the Hub: the SHA-256 of a large one, git's SHA-1 of a small one."""
    data = path.read_bytes()
    if is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sibling(name: str, path: Path) -> dict[str, object]:
    """A file in a model's description; of a large one with its SHA-256."""
    found: dict[str, object] = {"rfilename": name, "size": path.stat().st_size}
    if is_large(path):
        found["lfs"] = {"sha256": etag(path), "size": path.stat().st_size, "pointerSize": 135}
    return found


Hub = TypeVar("Hub", bound=FakeHub)


@contextmanager
def serve(hub: Hub, handler: type[HubHandler], tls: ssl.SSLContext | None = None) -> Iterator[Hub]:
    """Runs a hub on loopback, with HTTPS if there is a context for it."""
    server = HubServer(hub, handler)
    hub.port = server.server_address[1]
    hub.endpoint = f"http://127.0.0.1:{hub.port}"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_hub(repositories: dict[str, Path], tls: ssl.SSLContext | None = None) -> Iterator[FakeHub]:
    """A running hub; `hub.endpoint` is what HF_ENDPOINT must be."""
    with serve(FakeHub(repositories), HubHandler, tls) as hub:
        yield hub
