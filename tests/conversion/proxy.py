"""An HTTP proxy on loopback, as companies have one: the only way to hosts whose names nobody else knows.

Plain requests name the whole address, and the proxy asks in their place. For HTTPS it is asked to CONNECT, and passes
bytes on in both directions without understanding them.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_PIECE = 1 << 16


@dataclass
class Proxy:
    """A proxy.

    Attributes:
        hosts: the port on loopback of each host that it knows.
        passed: what it was asked for: a method and a host each time.
    """

    hosts: Mapping[str, int]
    address: str = ""
    passed: list[tuple[str, str]] = field(default_factory=list)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: Proxy

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._forward()

    def do_HEAD(self) -> None:
        self._forward()

    def _forward(self) -> None:
        parts = urlsplit(self.path)
        port = self._port_of(parts.hostname or "")
        if port is None:
            return
        there = http.client.HTTPConnection("127.0.0.1", port)
        headers = {key: value for key, value in self.headers.items() if not key.lower().startswith("proxy-")}
        there.request(self.command, f"{parts.path}?{parts.query}", headers=headers)
        answer = there.getresponse()
        self.send_response_only(answer.status)
        for key, value in answer.getheaders():
            self.send_header(key, value)
        self.end_headers()
        with suppress(ConnectionError):
            while piece := answer.read(_PIECE):
                self.wfile.write(piece)
        there.close()

    def do_CONNECT(self) -> None:
        port = self._port_of(self.path.partition(":")[0])
        if port is None:
            return
        with socket.create_connection(("127.0.0.1", port)) as there:
            self.send_response_only(200)
            self.end_headers()
            back = threading.Thread(target=_pass_on, args=(there, self.connection), daemon=True)
            back.start()
            _pass_on(self.connection, there)
            back.join(1)
        self.close_connection = True

    def _port_of(self, host: str) -> int | None:
        self.server.proxy.passed.append((self.command, host))
        if host not in self.server.proxy.hosts:
            self.send_error(502, "no such host")
        return self.server.proxy.hosts.get(host)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def serve_proxy(hosts: Mapping[str, int]) -> Iterator[Proxy]:
    """A running proxy; `proxy.address` is what HTTP_PROXY and HTTPS_PROXY must be."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.proxy = Proxy(hosts, f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
