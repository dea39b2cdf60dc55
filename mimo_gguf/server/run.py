"""Runs the server: until a signal, then until the last answer; at a second Ctrl-C, at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import Final

import uvicorn

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.log import LOGGER
from mimo_gguf.server.app import make_app
from mimo_gguf.server.connections import limited
from mimo_gguf.server.models import Models
from mimo_gguf.server.settings import Settings

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_BACKLOG: Final = 512


def run(
    models: Models, settings: Settings, listener: socket.socket, on_ready: Callable[[Settings], None] | None = None
) -> bool:
    """Serves until SIGTERM or SIGINT, and then answers what it has taken on. A second SIGINT breaks that off.

    The models are closed at the end in any case.

    Args:
        listener: the result of `listen`.
        on_ready: called with the settings, whose port is the real one, when clients can connect.

    Returns:
        Whether everything was answered.

    Raises:
        UsageError: the TLS files cannot be read.
    """
    try:
        real = replace(settings, port=listener.getsockname()[1])
        server = Server(config_of(models, real), on_ready and (lambda: on_ready(real)))
        server.run(sockets=[listener])
        return not server.force_exit
    finally:
        models.close()


def listen(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say. Raises UsageError if that cannot be."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{settings.host}:{settings.port}: {reason}", hint="choose another --port") from None


def config_of(models: Models, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration. Raises UsageError if the TLS files cannot be read."""
    logger = logging.getLogger("uvicorn.error")
    logger.setLevel(logging.ERROR)  # not a line for each client that speaks no HTTP
    logger.addFilter(_is_fault)
    certificate, key = settings.tls or (None, None)
    config = uvicorn.Config(
        make_app(models, settings), lifespan="on" if settings.files_dir else "off", log_config=None, access_log=False,
        server_header=False, ssl_certfile=certificate, ssl_keyfile=key, timeout_keep_alive=75, ws="none",
        proxy_headers=False, http=limited(settings.connections),
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(f"{certificate}, {key}: {error.strerror or error}", hint="give PEM files") from None
    return config


def _is_fault(record: logging.LogRecord) -> bool:
    """Whether uvicorn logs a fault, not an answer that was broken off because the server stops."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


class Server(uvicorn.Server):
    """uvicorn's server, which tells when it is ready, and does not raise the signals again that have ended it."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None] | None = None) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_ready is not None:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        LOGGER.info("stopping as soon as every answer has ended; Ctrl-C again stops at once")
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.handle_exit(number, frame)
