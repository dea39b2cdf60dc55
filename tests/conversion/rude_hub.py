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
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from tests.conversion.fake_hub import COMMIT, NEWER_COMMIT, FakeHub, HubHandler, HubServer, is_large, serve

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
class RudeHub(FakeHub):
    """A fake hub that redirects, may be rude, and is ModelScope, too.

    Attributes:
        strangers: tokens that reached another host than the hub.
        delays: file name -> seconds before each answer.
        links: the redirects that have not expired.
    """

    rudeness: Rudeness | None = None
    redirects: bool = True
    delays: dict[str, float] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    links: set[str] = field(default_factory=set)


class _Server(HubServer):
    hub: RudeHub


class _Handler(HubHandler):
    server: _Server

    def answer(self, path: str, token: str) -> None:
        hub, query = self.server.hub, parse_qs(urlsplit(self.path).query)
        if path.startswith("/links/"):
            hub.strangers += [token] if token else []
            self._linked(path)
        elif match := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", path):
            if match[1] in hub.gated and token != hub.token:
                self.fail(403, "GatedRepo")
            else:
                self._modelscope(match[1], query["Revision"][0], None if match[2] else query["FilePath"][0])
        else:
            super().answer(path, token)

    def _modelscope(self, name: str, revision: str, file_name: str | None) -> None:
        """ModelScope: an unknown revision is no error, and the newest commit is stated in part."""
        hub = self.server.hub
        folder = hub.repositories.get(name)
        if folder is None:
            self.send(404, b'{"Code": 10010205001, "Success": false}', {})
        elif file_name is not None:
            self.send_bytes_of(folder / file_name, {})
        elif revision not in ("master", COMMIT):
            self.send(200, b'{"Code": 200, "Success": true, "Data": {"Files": null, "LatestCommitter": null}}', {})
        else:
            entries = [
                {"Path": path.name, "Name": path.name, "Type": "blob", "Size": path.stat().st_size,
                 "Sha256": self._sha256(path),
                 "Revision": COMMIT if path.name == "config.json" else NEWER_COMMIT}
                for path in sorted(folder.iterdir())
            ]  # fmt: skip
            data = {"Files": [{"Path": "assets", "Type": "tree", "Size": 0}, *entries],
                    "LatestCommitter": {"Id": "", "ShortId": COMMIT[:8]}}  # fmt: skip
            self.send(200, json.dumps({"Code": 200, "Success": True, "Data": data}).encode(), {})

    def _sha256(self, path: Path) -> str:
        hub = self.server.hub
        stated = hub.etag_of(path) if is_large(path) else hashlib.sha256(path.read_bytes()).hexdigest()
        return stated if hub.states_digests else ""

    def send_file(self, name: str, path: Path, headers: Mapping[str, str]) -> None:
        hub = self.server.hub
        if not (is_large(path) and hub.redirects):
            super().send_file(name, path, headers)
            return
        digest = {"X-Linked-Etag": f'"{hub.etag_of(path)}"'} if hub.states_digests else {}
        link = f"/links/{len(hub.links)}{path}"
        hub.links.add(link)
        port = self.server.server_address[1]
        there = {"X-Linked-Size": str(path.stat().st_size), "Location": f"http://localhost:{port}{quote(link)}"}
        self.send(302, b"", {**headers, **digest, **there})

    def _linked(self, path: str) -> None:
        """What storage answers: the bytes, or a refusal if the link is too old."""
        if path not in self.server.hub.links:
            self.send(403, b"<Error>AccessDenied</Error>", {})
        else:
            self.send_bytes_of(Path("/" + path.split("/", 3)[3]), {}, link=path)

    def send_bytes_of(self, path: Path, headers: Mapping[str, str], *, link: str | None = None) -> None:
        hub = self.server.hub
        time.sleep(hub.delays.get(path.name, 0.0))
        is_asked = self.command == "GET" and is_large(path)
        fault = hub.rudeness.next_fault() if is_asked and hub.rudeness is not None else None
        if fault is None:
            super().send_bytes_of(path, headers)
            return
        if fault == "expired":
            if link is not None:
                hub.links.discard(link)
            fault = "expired" if link is not None else "busy"
        data = path.read_bytes()
        status, size = 200, len(data)
        if (asked := self.range_of(size)) and fault != "whole file":
            first, last = asked
            last = self._random(first, last) if fault == "short" else last
            data, status = data[first : last + 1], 206
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
        self._send_rudely(fault, status, data, dict(headers), size)

    def _random(self, first: int, last: int) -> int:
        return random.Random(len(self.server.hub.requests)).randint(first, last)

    def _send_rudely(self, fault: str, status: int, data: bytes, headers: dict[str, str], size: int) -> None:
        if fault == "no answer":
            self.close_connection = True
        elif fault in _REFUSALS:
            self.send(_REFUSALS[fault], b"<html>no</html>", {})
        elif fault == "busy":
            self.send(429, b"", {"Retry-After": "0"})
        elif fault == "busy until":
            self.send(503, b"", {"Retry-After": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())})
        elif fault == "cut":
            self.send(status, data, headers, stop_at=self._random(0, max(0, len(data) - 1)))
        elif fault == "flipped":
            wrong = bytearray(data)
            wrong[self._random(0, len(data) - 1)] ^= 0x55
            self.send(status, bytes(wrong), headers)
        else:
            wrongly = {"other range": {"Content-Range": f"bytes 7-{size}/{size}"},
                       "compressed": {"Content-Encoding": "gzip"}}.get(fault, {})  # fmt: skip
            self.send(status, data, headers | wrongly, drip=fault == "drip")


@contextmanager
def serve_rude_hub(repositories: dict[str, Path]) -> Iterator[RudeHub]:
    """A running hub; `hub.endpoint` is what HF_ENDPOINT and MODELSCOPE_ENDPOINT must be."""
    with serve(RudeHub(repositories), _Handler) as hub:
        yield hub
