"""Putting signal handlers off while shared state is between two whole states."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

Handler = Callable[[int, FrameType | None], Any]

# Those whose handlers are known to raise: Ctrl-C, `sys.exit` on termination, a timeout by an alarm.
# `_signal` is what the signal module wraps in an enumeration: this is asked for every token, and that takes longer.
_SIGNALS: Final = tuple(
    int(getattr(signal, name))
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGQUIT", "SIGBREAK", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class DeferredSignals:
    """While this lasts signals are noted, and `on_signal` called; their handlers run at the end, and may raise there.

    Python runs handlers in the main thread alone: in others, and where no Python handler is set, this does nothing.
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
        except BaseException:  # raised by the handler of one that was not yet put off
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
        except BaseException:  # raised by one that was just put back
            self._restore()
            raise

    def _run_handlers(self) -> None:
        """Runs the handlers of all that was noted; what is raised last is seen, the others as its contexts."""
        number, frame = self._noted.pop(0)
        try:
            dict(self._handlers)[number](number, frame)
        finally:
            if self._noted:
                self._run_handlers()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.append((number, frame))
        self._on_signal()
