"""A Hugging Face Hub on loopback: model info, file tree, files with ETag and ranges, a broken download if asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """The repositories served, and what was asked of them."""

    repositories: dict[str, Path]
    endpoint: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    sent_bytes: int = 0
    break_after: dict[str, int] = field(default_factory=dict)  # file name -> bytes sent before the connection drops
    flipped: set[str] = field(default_factory=set)  # files of which one bit comes wrong
    gated: set[str] = field(default_factory=set)  # repositories whose terms must be accepted
    bytes_per_s: float | None = None  # how fast files are sent


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.hub.requests.append((self.command, path, self.headers.get("Range")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+).*)?", path):
            self._api(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._fail(404, "EntryNotFound")

    def _repository(self, name: str, revision: str | None) -> Path | None:
        folder = self.server.hub.repositories.get(name)
        if name in self.server.hub.gated:
            self._fail(403, "GatedRepo")
            return None
        if folder is None:
            self._fail(404, "RepoNotFound")
        elif revision not in (None, "main", COMMIT):
            self._fail(404, "RevisionNotFound")
            folder = None
        return folder

    def _api(self, name: str, kind: str | None, revision: str | None) -> None:
        folder = self._repository(name, revision)
        if folder is None:
            return
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if kind == "tree":
            answer: object = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _etag(path)} for path in files
            ]
        else:
            answer = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0,
                      "siblings": [_sibling(path) for path in files]}  # fmt: skip
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, file_name: str) -> None:
        folder = self._repository(name, revision)
        if folder is None:
            return
        path = folder / file_name
        if not path.is_file():
            self._fail(404, "EntryNotFound")
            return
        data = path.read_bytes()
        if file_name in self.server.hub.flipped:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        if self.command == "GET" and file_name in self.server.hub.break_after:
            self._send(status, data, headers, stop_at=self.server.hub.break_after.pop(file_name))
        else:
            self._send(status, data, headers)

    def _write(self, data: bytes) -> None:
        speed = self.server.hub.bytes_per_s
        step = len(data) if speed is None else max(int(speed / 20), 1)
        for first in range(0, len(data), max(step, 1)):
            self.wfile.write(data[first : first + step])
            self.server.hub.sent_bytes += len(data[first : first + step])
            if speed is not None:
                time.sleep(0.05)

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, stop_at: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self._write(data[:stop_at])
        if stop_at is not None:
            self.close_connection = True


def _sibling(path: Path) -> dict[str, object]:
    """A file in a model's description; of a large one with its SHA-256."""
    found: dict[str, object] = {"rfilename": path.name, "size": path.stat().st_size}
    if path.suffix in (".gguf", ".safetensors"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found["lfs"] = {"sha256": digest, "size": path.stat().st_size, "pointerSize": 135}
    return found


def _etag(path: Path) -> str:
    """As on the Hub: of a large file its SHA-256, of a small one the name that git gives it."""
    data = path.read_bytes()
    if path.suffix in (".gguf", ".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve_hub(repositories: dict[str, Path]) -> Iterator[FakeHub]:
    """A running hub; `hub.endpoint` is what HF_ENDPOINT must be."""
    hub = FakeHub(repositories)
    server = _Server(hub)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
