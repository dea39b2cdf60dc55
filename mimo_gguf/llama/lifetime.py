"""When a native object may be freed: once, after whatever still looks at it, never under a running pass, not by a fork.

An `Owner` holds one native pointer. Its cell is what everybody looks at, so that a pointer that was freed (by `close`,
by garbage collection, at the exit of the process) or that belongs to the parent of a forked process can no longer be
handed to llama.cpp: asking for it raises UsageError instead.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from mimo_gguf.core.errors import UsageError

_CLOSED: Final = ("the model has been closed", "load it again")
_FORKED: Final = (
    "the model was loaded before this process was forked, and llama.cpp's threads are not here",
    'load it in each process, or start them with multiprocessing.get_context("spawn")',
)
_PATIENCE_S: Final = 10.0  # how long the exit of the process waits for a pass in another thread


class _Cell:
    """A pointer, 0 once it may no longer be used, and why."""

    __slots__ = ("__weakref__", "gone", "lock", "pointer")

    def __init__(self, pointer: int, lock: Any) -> None:
        self.pointer = pointer
        self.lock = lock
        self.gone = _CLOSED


class Exit:
    """Whether the process is ending: passes then stop as soon as they ask."""

    is_near = False


_LIVE: Final[weakref.WeakSet[_Cell]] = weakref.WeakSet()


class Owner:
    """Owns one native pointer; frees it once, on `close`, on garbage collection, or at exit."""

    def __init__(self, pointer: int, free: Callable[[int], None], *needed: Owner, lock: Any = None) -> None:
        """`needed` are what `free` still looks at, so that they are freed later; `lock` is held while anybody works."""
        self._cell = _Cell(pointer, lock or threading.RLock())
        self._finalizer = weakref.finalize(self, _free, self._cell, free, needed)
        _LIVE.add(self._cell)

    @property
    def pointer(self) -> int:
        """For llama.cpp, which does not look whether it is still valid.

        Raises:
            UsageError: it has been freed, or belongs to the process that this one was forked from.
        """
        cell = self._cell
        if cell.pointer:
            return cell.pointer
        message, hint = cell.gone
        raise UsageError(message, hint=hint)

    @property
    def lock(self) -> Any:
        """Held while a thread works with the pointer: `close`, from another thread, waits for it.

        Raises:
            UsageError: as `pointer`.
        """
        cell = self._cell
        if not cell.pointer:
            message, hint = cell.gone
            raise UsageError(message, hint=hint)
        return cell.lock

    @property
    def closed(self) -> bool:
        return not self._cell.pointer

    def close(self) -> None:
        """Frees it. Harmless if that has been done."""
        self._finalizer()


def _free(cell: _Cell, free: Callable[[int], None], _: tuple[Owner, ...]) -> None:
    if not cell.pointer:  # forked, or given up at exit
        return
    with cell.lock:
        pointer, cell.pointer = cell.pointer, 0
        if pointer:
            free(pointer)


def _forget_the_parents() -> None:
    """In a forked child: its parent's objects are neither used nor freed here."""
    for cell in list(_LIVE):
        cell.pointer, cell.gone = 0, _FORKED


def _let_passes_end() -> None:
    """At exit: stops what daemon threads compute and keeps them out; what does not stop in time is never freed."""
    Exit.is_near = True
    for cell in list(_LIVE):
        if not cell.lock.acquire(timeout=_PATIENCE_S):
            cell.pointer = 0


weakref.finalize(Owner, int)  # so that weakref's own exit function is registered first, and therefore runs last
atexit.register(_let_passes_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)


class Caught:
    """What was raised where llama.cpp called back into Python."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def check(self) -> None:
        """Raises it, once."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error


@contextmanager
def catching(caught: Caught, *callbacks: Any) -> Iterator[None]:
    """Keeps in `caught` what is raised at the very entry of these callbacks, which no `try` of theirs can see.

    Python runs signal handlers there, so most Ctrl-C of a long native call arrive so; ctypes can only report them to
    `sys.unraisablehook`. Handlers run in the main thread alone: in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if any(unraisable.object is callback for callback in callbacks):
            caught.error = caught.error or unraisable.exc_value
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = before
