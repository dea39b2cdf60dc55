"""HTTP by hand over one connection, so that a client can be as slow, as short and as wrong as it likes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

_LONGEST: Final = 1 << 24  # bytes of a line or a body


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, its headers by their names in small letters, its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        """The documents of a stream."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: {")]
        return [json.loads(line) for line in lines]


Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connection(port: int, *, receives: int | None = None) -> AsyncIterator[Pipe]:
    """A connection that is closed at the end, whatever is still to come. `receives` bytes are the socket's buffer."""
    made = socket.socket()
    if receives is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    made.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=made, limit=_LONGEST)
    except BaseException:
        made.close()
        raise
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def head(path: str, n_bytes: int, headers: dict[str, str]) -> bytes:
    """The head of a POST, after whose answer the connection ends."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {n_bytes}", "Connection: close"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""]).encode()


async def read_reply(reader: asyncio.StreamReader, *, pause_s: float = 0.0) -> Reply:
    """Reads an answer to its end, with a pause before each piece of 512 bytes if one is wished for."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    body = bytearray()
    while piece := await reader.read(512 if pause_s else 1 << 16):
        body += piece
        await asyncio.sleep(pause_s)
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(bytes(body))
    return Reply(int(lines[0].split()[1]), headers, bytes(body))


def _joined(chunked: bytes) -> bytearray:
    """The body that chunks make. Raises ValueError if they do not end as they should."""
    found = bytearray()
    while True:
        size, _, chunked = chunked.partition(b"\r\n")
        n_bytes = int(size, 16)
        if not n_bytes:
            return found
        found += chunked[:n_bytes]
        if len(chunked) < n_bytes + 2:
            raise ValueError("the answer ends in the middle of a chunk")
        chunked = chunked[n_bytes + 2 :]
