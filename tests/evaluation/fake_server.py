"""A server with OpenAI's API whose answers depend on the seed alone: sums, right as often as it is told."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeServer:
    """How the server behaves, and what it was asked.

    Attributes:
        right_of_10: right answers of ten.
        pause_s: the time that an answer takes.
        busy: how many requests are refused first.
        broken: seeds (modulo 10) of requests that are refused for good.
        key: the key that it wants.
    """

    right_of_10: int = 7
    pause_s: float = 0.0
    busy: int = 0
    broken: frozenset[int] = frozenset()
    key: str | None = None
    models: list[str] = field(default_factory=lambda: ["org/wise"])
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append(body)
        time.sleep(self.pause_s)
        seed = body["seed"] % 10
        if seed in self.broken:
            return 400, {"error": {"message": "no sums today", "code": "invalid_value"}}
        total = sum(map(int, re.findall(r"\d+", body["messages"][-1]["content"])))
        text = f"<think>Hm, 3.</think>\n\nIt is {total if seed < self.right_of_10 else total + 1}."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
        return 200, {"id": f"chatcmpl-{body['seed']}", "choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": name} for name in self.fake.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.fake.key is not None and self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            self._send(401, {})
        elif self.fake.busy > 0:
            self.fake.busy -= 1
            self._send(503, {})
        else:
            self._send(*self.fake.answer(body))

    def _send(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True


@contextmanager
def serve_sums(**how: Any) -> Iterator[FakeServer]:
    """A running server."""
    fake = FakeServer(**how)
    handler = type("Handler", (_Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
