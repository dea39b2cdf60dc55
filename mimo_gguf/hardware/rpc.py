"""llama.cpp's RPC workers and their devices; each worker is checked before llama.cpp connects to it.

llama.cpp's own client ends the process if another program, or a worker of another version, listens at an address. If
nothing answers, it waits without limit. So its greeting is sent here first, on another connection.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/src/ggml-rpc/ggml-rpc.cpp (negotiate_hello)
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.hardware.devices import Device, ggml_devices
from mimo_gguf.llama.api import ggml_function

# https://github.com/ggml-org/llama.cpp/blob/0c1e57098/ggml/include/ggml-rpc.h (RPC_PROTO_*_VERSION)
PROTOCOL: Final = (7, 0, 0)
TIMEOUT_S: Final = 5.0
_HELLO: Final = 14  # RPC_CMD_HELLO
_CAPABILITIES: Final = 24  # RPC_CONN_CAPS_SIZE: bytes that list the faster transports of a side; none here
_REQUEST: Final = struct.pack(f"<BQ{_CAPABILITIES}x", _HELLO, _CAPABILITIES)
_RESPONSE: Final = struct.Struct(f"<QBBBx{_CAPABILITIES}x")  # size of the rest, version, capabilities
_START_ONE: Final = "start one on that machine: mimo-gguf worker"
_SAME_VERSION: Final = "install the same llama-cpp-python on both machines"
_registered: Final[set[int]] = set()


def add_workers(endpoints: Sequence[str]) -> tuple[Device, ...]:
    """Connects to RPC workers (`mimo-gguf worker`) and returns their devices, which stay in ggml's list.

    All are checked before llama.cpp connects to the first.

    Raises:
        UsageError: an endpoint is not HOST:PORT.
        BackendError: no worker of this version answers there, or this build of llama.cpp has no RPC.
    """
    known = {device.pointer for device in ggml_devices()}
    add = ggml_function("ggml_backend_rpc_add_server", ctypes.c_void_p, ctypes.c_char_p)
    register = ggml_function("ggml_backend_register", None, ctypes.c_void_p)
    connected = {device.description for device in ggml_devices() if device.backend == "RPC"}
    for endpoint in dict.fromkeys(endpoints):
        if endpoint not in connected:  # a worker serves one connection at a time, so a second greeting would wait
            check_worker(endpoint)
    for endpoint in dict.fromkeys(endpoints):
        registry = add(endpoint.encode())
        if not registry:
            raise BackendError(f"{endpoint}: it lends no device", hint=_START_ONE)
        if registry not in _registered:
            register(registry)
            _registered.add(registry)
    wanted = set(endpoints)
    devices = [device for device in ggml_devices() if device.backend == "RPC"]
    return tuple(d for d in devices if d.pointer not in known or d.description in wanted)


def check_worker(endpoint: str, timeout_s: float = TIMEOUT_S) -> None:
    """Refuses an endpoint that llama.cpp cannot use.

    Raises:
        UsageError: the endpoint is not HOST:PORT.
        BackendError: no worker of this version answers there within `timeout_s` seconds.
    """
    host, port = _parse(endpoint)
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            said: bytes | None = _greet(connection, time.monotonic() + timeout_s)
    except TimeoutError:
        said = None
    except (OSError, ValueError) as error:  # ValueError: no host could have that name
        reason = getattr(error, "strerror", None) or error
        raise BackendError(f"{endpoint:.80}: {reason}", hint=_START_ONE) from None
    if said is None:
        raise BackendError(
            f"{endpoint}: no answer to llama.cpp's greeting within {timeout_s:g} s",
            hint="it is not a worker, or busy with another program: a worker serves one at a time",
        )
    if len(said) < _RESPONSE.size or not _is_size_right(said):
        raise BackendError(f"{endpoint}: not a worker of this llama.cpp version", hint=f"{_START_ONE}; {_SAME_VERSION}")
    version = _RESPONSE.unpack(said)[1:]
    if version[0] != PROTOCOL[0] or version[1] > PROTOCOL[1]:
        theirs, ours = (".".join(map(str, numbers)) for numbers in (version, PROTOCOL))
        raise BackendError(
            f"{endpoint}: a worker of RPC version {theirs}, this llama.cpp has {ours}", hint=_SAME_VERSION
        )


def _parse(endpoint: str) -> tuple[str, int]:
    host, colon, port = endpoint.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
    if not colon or not host or ":" in host or not is_port:  # llama.cpp splits at the first colon
        raise UsageError(f"{endpoint!r} is not a worker's address", hint="write it like 127.0.0.1:50052")
    return host, int(port)


def _greet(connection: socket.socket, deadline: float) -> bytes:
    """Sends the greeting and returns the answer, which is shorter if the other side closes early.

    Raises:
        TimeoutError: the deadline has passed.
    """
    said = b""
    with contextlib.suppress(ConnectionError):  # closed instead of an answer
        connection.sendall(_REQUEST)
        while len(said) < 8 or (_is_size_right(said) and len(said) < _RESPONSE.size):
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            more = connection.recv(_RESPONSE.size - len(said))
            if not more:
                break
            said += more
    return said


def _is_size_right(said: bytes) -> bool:
    return int.from_bytes(said[:8], "little") == _RESPONSE.size - 8
