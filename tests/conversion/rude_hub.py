"""The Hugging Face Hub and ModelScope on loopback, as polite or as rude as asked for.

Both serve the same folders. Weights are answered with a redirect to another host, as the Hub does: 127.0.0.1 is the
hub, localhost is where the links lead, and links expire. `rudeness` decides what goes wrong with an answer.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
TOKEN = "hub-token"

# What can go wrong with an answer that holds bytes of a file.
FAULTS = (
    "cut", "no answer", "short", "whole file", "other range", "flipped", "busy", "busy until", "broken", "bad gateway",
    "expired", "drip", "compressed",
)  # fmt: skip
_REFUSALS = {"expired": 403, "broken": 500, "bad gateway": 502}


@dataclass
class Rudeness:
    """Decides for each answer what goes wrong with it, by a seed.

    Attributes:
        rate: share of the answers that go wrong.
        flips: answers with wrong bytes that are left; the client takes a file twice at most.
    """

    seed: int
    rate: float = 0.5
    faults: tuple[str, ...] = FAULTS
    flips: int = 1
    met: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._lock = threading.Lock()

    def next_fault(self) -> str | None:
        with self._lock:
            fault = self.random.choice(self.faults) if self.random.random() < self.rate else None
            if fault == "flipped":
                self.flips -= 1
                fault = fault if self.flips >= 0 else None
            if fault:
                self.met.add(fault)
            return fault


@dataclass
class RudeHub:
    """The repositories served, and what was asked of them.

    Attributes:
        break_after: file name -> bytes sent before the connection drops, once.
        gated: whether every request must bring the token.
        strangers: tokens that reached another host than the hub.
        delays: file name -> seconds before each answer.
    """

    repositories: dict[str, Path]
    endpoint: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    sent_bytes: int = 0
    break_after: dict[str, int] = field(default_factory=dict)
    rudeness: Rudeness | None = None
    redirects: bool = True
    gated: bool = False
    token: str = TOKEN
    delays: dict[str, float] = field(default_factory=dict)
    states_digests: bool = True
    strangers: list[str] = field(default_factory=list)
    commit: str = COMMIT
    links: set[str] = field(default_factory=set)

    def fault(self) -> str | None:
        return None if self.rudeness is None else self.rudeness.next_fault()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: RudeHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path.startswith("/links/"):
            hub.strangers += [token] if token else []
            self._linked(path)
        elif hub.gated and token != hub.token:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+).*)?", path):
            self._api(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", path):
            self._modelscope(match[1], query["Revision"][0], None if match[2] else query["FilePath"][0])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._fail(404, "EntryNotFound")

    def _repository(self, name: str, revision: str | None) -> Path | None:
        folder = self.server.hub.repositories.get(name)
        if folder is None:
            self._fail(404, "RepoNotFound")
        elif revision not in (None, "main", "master", COMMIT, self.server.hub.commit):
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
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": etag(path)} for path in files
            ]
        else:
            commit = revision if revision and len(revision) == 40 else self.server.hub.commit
            answer = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "downloads": 0,
                      "siblings": [{"rfilename": path.name} for path in files]}  # fmt: skip
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _modelscope(self, name: str, revision: str, file_name: str | None) -> None:
        """ModelScope: an unknown revision is no error, and the newest commit is stated in part."""
        hub = self.server.hub
        folder = hub.repositories.get(name)
        if folder is None:
            self._send(404, b'{"Code": 10010205001, "Success": false}', {})
        elif file_name is not None:
            self._bytes_of(folder / file_name, {})
        elif revision not in ("master", COMMIT):
            self._send(200, b'{"Code": 200, "Success": true, "Data": {"Files": null, "LatestCommitter": null}}', {})
        else:
            entries = [
                {"Path": path.name, "Name": path.name, "Type": "blob", "Size": path.stat().st_size,
                 "Sha256": hashlib.sha256(path.read_bytes()).hexdigest() if hub.states_digests else "",
                 "Revision": COMMIT if path.name == "config.json" else NEWER_COMMIT}
                for path in sorted(folder.iterdir())
            ]  # fmt: skip
            data = {"Files": [{"Path": "assets", "Type": "tree", "Size": 0}, *entries],
                    "LatestCommitter": {"Id": "", "ShortId": COMMIT[:8]}}  # fmt: skip
            self._send(200, json.dumps({"Code": 200, "Success": True, "Data": data}).encode(), {})

    def _file(self, name: str, revision: str, file_name: str) -> None:
        folder = self._repository(name, revision)
        if folder is None:
            return
        hub, path = self.server.hub, folder / file_name
        if not path.is_file():
            self._fail(404, "EntryNotFound")
            return
        stated = {"X-Repo-Commit": revision if len(revision) == 40 else hub.commit, "Accept-Ranges": "bytes"}
        if hub.states_digests:
            stated["X-Linked-Etag" if _is_large(path) else "ETag"] = f'"{etag(path)}"'
        if not (_is_large(path) and hub.redirects):
            self._bytes_of(path, stated)
            return
        stated |= {"X-Linked-Size": str(path.stat().st_size)}
        link = f"/links/{len(hub.links)}/{name}/{file_name}"
        hub.links.add(link)
        port = self.server.server_address[1]
        self._send(302, b"", {**stated, "Location": f"http://localhost:{port}{quote(link)}"})

    def _linked(self, path: str) -> None:
        """What storage answers: the bytes, or a refusal if the link is too old."""
        _, _, _, owner, name, file_name = path.split("/")
        if path not in self.server.hub.links:
            self._send(403, b"<Error>AccessDenied</Error>", {})
        else:
            self._bytes_of(self.server.hub.repositories[f"{owner}/{name}"] / file_name, {}, link=path)

    def _bytes_of(self, path: Path, headers: Mapping[str, str], *, link: str | None = None) -> None:
        hub, data = self.server.hub, path.read_bytes()
        time.sleep(hub.delays.get(path.name, 0.0))
        fault = hub.fault() if self.command == "GET" and _is_large(path) else None
        if self.command == "GET" and path.name in hub.break_after:
            self._send(200, data, headers, stop_at=hub.break_after.pop(path.name))
            return
        if fault == "expired":
            if link is not None:
                hub.links.discard(link)
            fault = "expired" if link is not None else "busy"
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status, first, size = 200, 0, len(data)
        if match and fault != "whole file":
            first, last = int(match[1]), min(int(match[2] or size - 1), size - 1)
            last = self._random(first, last) if fault == "short" else last
            data, status = data[first : last + 1], 206
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
        self._send_rudely(fault, status, data, dict(headers), size)

    def _random(self, first: int, last: int) -> int:
        return random.Random(len(self.server.hub.requests)).randint(first, last)

    def _send_rudely(self, fault: str | None, status: int, data: bytes, headers: dict[str, str], size: int) -> None:
        if fault == "no answer":
            self.close_connection = True
        elif fault in _REFUSALS:
            self._send(_REFUSALS[fault], b"<html>no</html>", {})
        elif fault == "busy":
            self._send(429, b"", {"Retry-After": "0"})
        elif fault == "busy until":
            self._send(503, b"", {"Retry-After": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())})
        elif fault == "cut":
            self._send(status, data, headers, stop_at=self._random(0, max(0, len(data) - 1)))
        elif fault == "flipped":
            wrong = bytearray(data)
            wrong[self._random(0, len(data) - 1)] ^= 0x55
            self._send(status, bytes(wrong), headers)
        else:
            wrongly = {"other range": {"Content-Range": f"bytes 7-{size}/{size}"},
                       "compressed": {"Content-Encoding": "gzip"}}.get(fault or "", {})  # fmt: skip
            self._send(status, data, headers | wrongly, drip=fault == "drip")

    def _fail(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(
        self, status: int, data: bytes, headers: Mapping[str, str], *, stop_at: int | None = None, drip: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            step = max(1, len(data) // 4) if drip else max(1, len(data))
            for at in range(0, len(data[:stop_at]), step):
                self.wfile.write(data[:stop_at][at : at + step])
                time.sleep(0.001 * drip)
            self.server.hub.sent_bytes += len(data[:stop_at])
        if stop_at is not None:
            self.close_connection = True


def _is_large(path: Path) -> bool:
    """Whether git-lfs keeps the file."""
    return path.suffix == ".safetensors"


def etag(path: Path) -> str:
    """The ETag of a file on the Hub: the SHA-256 of a large one, git's SHA-1 of a small one."""
    data = path.read_bytes()
    if _is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve_rude_hub(repositories: dict[str, Path]) -> Iterator[RudeHub]:
    """A running hub; `hub.endpoint` is what HF_ENDPOINT and MODELSCOPE_ENDPOINT must be."""
    hub = RudeHub(repositories)
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
