"""Frees native objects safely: once, after the objects that use them, never during a pass, and not in a forked child.

An `Owner` holds one native pointer in a cell. A pointer that was freed (by `close`, garbage collection, or the exit of
the process), or that belongs to the parent of a forked process, can no longer be given to llama.cpp: reading it raises
UsageError.
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
_PATIENCE_S: Final = 10.0  # time that the exit of the process waits for a pass in another thread


class _Cell:
    """A pointer, which is 0 as soon as it may no longer be used, and the message and hint that say why."""

    __slots__ = ("__weakref__", "gone", "lock", "pointer")

    def __init__(self, pointer: int, lock: Any) -> None:
        self.pointer = pointer
        self.lock = lock
        self.gone = _CLOSED


class Exit:
    """Whether the process is ending. Passes then stop at their next call of `stop_when`."""

    is_near = False


_LIVE: Final[weakref.WeakSet[_Cell]] = weakref.WeakSet()


class Owner:
    """Owns one native pointer and frees it once: on `close`, on garbage collection, or at exit."""

    def __init__(self, pointer: int, free: Callable[[int], None], *needed: Owner, lock: Any = None) -> None:
        """Owns `pointer`.

        Args:
            free: frees the pointer.
            needed: owners of objects that `free` still uses, so that they are freed later.
            lock: held while a thread works with the pointer; None makes a new one.
        """
        self._cell = _Cell(pointer, lock or threading.RLock())
        self._finalizer = weakref.finalize(self, _free, self._cell, free, needed)
        _LIVE.add(self._cell)

    @property
    def pointer(self) -> int:
        """The pointer, for llama.cpp, which does not check that it is still valid.

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
        """The lock that a thread holds while it works with the pointer. `close`, from another thread, waits for it.

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
        """Frees the pointer. Does nothing if it has been freed."""
        self._finalizer()


def _free(cell: _Cell, free: Callable[[int], None], _: tuple[Owner, ...]) -> None:
    if not cell.pointer:  # in a forked child, or given up at exit
        return
    with cell.lock:
        pointer, cell.pointer = cell.pointer, 0
        if pointer:
            free(pointer)


def _forget_the_parents() -> None:
    """Invalidates the parent's pointers in a forked child, where they are neither used nor freed."""
    for cell in list(_LIVE):
        cell.pointer, cell.gone = 0, _FORKED


def _let_passes_end() -> None:
    """Stops the passes of daemon threads at exit, and keeps their locks. A pass that does not stop is never freed."""
    Exit.is_near = True
    for cell in list(_LIVE):
        if not cell.lock.acquire(timeout=_PATIENCE_S):
            cell.pointer = 0


weakref.finalize(Owner, int)  # registers weakref's own exit function before ours, so that it runs after it
atexit.register(_let_passes_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)


class Caught:
    """Keeps an exception that was raised in a callback from llama.cpp."""

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def check(self) -> None:
        """Raises the exception, once."""
        if self.error is not None:
            error, self.error = self.error, None
            raise error


@contextmanager
def catching(caught: Caught, *callbacks: Any) -> Iterator[None]:
    """Keeps in `caught` what is raised at the entry of these callbacks, before a `try` inside them begins.

    Python runs signal handlers there, so Ctrl-C during a long native call is usually raised there. ctypes can only
    report it to `sys.unraisablehook`. Signal handlers run in the main thread only: in others this does nothing.
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
