"""Putting Ctrl-C off while shared state is between two whole states."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

# `_signal` is what the signal module wraps in an enumeration: this is asked for every token, and that takes longer.
_SIGINT: Final = int(signal.SIGINT)


class DeferredInterrupt:
    """While this lasts SIGINT is noted, and `on_signal` called; its handler runs at the end, and may raise there.

    Python runs handlers in the main thread alone: in others, and where no Python handler is set, this does nothing.
    """

    def __init__(self, on_signal: Callable[[], None]) -> None:
        self._on_signal = on_signal
        self._handler: Callable[[int, FrameType | None], Any] | None = None
        self._noted: list[tuple[int, FrameType | None]] = []

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            handler = _signal.getsignal(_SIGINT)
            if callable(handler):
                self._handler = handler
                _signal.signal(_SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler is None:
            return
        _signal.signal(_SIGINT, self._handler)
        for number, frame in self._noted:
            self._handler(number, frame)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.append((number, frame))
        self._on_signal()
