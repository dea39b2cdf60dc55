"""Defers signal handlers while shared state is being changed."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

Handler = Callable[[int, FrameType | None], Any]

# Signals whose handlers often raise: Ctrl-C, `sys.exit` on termination, a timeout by an alarm.
# `_signal` has the functions that the signal module wraps in enumerations, which would cost time for every token.
_SIGNALS: Final = tuple(
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGQUIT", "SIGBREAK", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class DeferredSignals:
    """Defers signals: inside the block `on_signal` is called; their handlers run at its end, and may raise there.

    Python runs handlers in the main thread only. In other threads, and without a Python handler, this does nothing.
    """

    __slots__ = ("_handlers", "_noted", "_on_signal")

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self._on_signal = on_signal
        self._handlers: list[tuple[int, Handler]] = []
        self._noted: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> DeferredSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        try:
            for number in _SIGNALS:
                handler = _signal.getsignal(number)
                if callable(handler):
                    self._handlers.append((number, handler))
                    _signal.signal(number, self._note)
        except BaseException:  # raised by a handler that was not yet deferred
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._handlers:
            try:
                self._restore()
            finally:
                if self._noted:
                    self._run_handlers()

    def _restore(self) -> None:
        try:
            for number, handler in self._handlers:
                _signal.signal(number, handler)
        except BaseException:  # raised by a handler that was just restored
            self._restore()
            raise

    def _run_handlers(self) -> None:
        """Runs the handlers of all noted signals. The last exception is raised, with the others as its contexts."""
        number, frame = self._noted.pop(0)
        try:
            dict(self._handlers)[number](number, frame)
        finally:
            if self._noted:
                self._run_handlers()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.append((number, frame))
        self._on_signal()
