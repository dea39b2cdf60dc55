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
    'start processes with multiprocessing.get_context("spawn"), or before the first model is loaded',
)
_SPOILED: Final = ("llama.cpp was at work before this process was forked, and its threads are not here", _FORKED[1])
_IN_PASS: Final = ("this thread is generating an answer", "do not close what it uses in a signal handler")
_PATIENCE_S: Final = 10.0  # time that the exit of the process waits for a pass in another thread


class _Cell:
    """A pointer, which is 0 as soon as it may no longer be used, and the message and hint that say why."""

    __slots__ = ("__weakref__", "beside", "gone", "is_in_pass", "lock", "pointer")

    def __init__(self, pointer: int, beside: _Cell | None = None) -> None:
        self.pointer = pointer
        self.beside = beside
        self.lock: Any = beside.lock if beside else threading.RLock()
        self.gone = _CLOSED
        self.is_in_pass = False  # whether the thread that holds the lock is in a pass; a signal handler may run there


class Exit:
    """Whether the process is ending. Passes of other threads then stop at their next call of `stop_when`."""

    _thread: int | None = None  # the thread that ends the process
    gate: Final = threading.RLock()  # held by that thread to the end

    @classmethod
    def stops_here(cls) -> bool:
        """Whether this thread must stop, because another one is ending the process."""
        return cls._thread is not None and cls._thread != threading.get_ident()

    @classmethod
    def begin(cls) -> None:
        """Notes that this thread ends the process."""
        cls.gate.acquire()
        cls._thread = threading.get_ident()


class Process:
    """Tells a forked child from its parent, whose threads do not exist in the child, even if they hold locks."""

    number = 0  # forks between the first process and this one
    has_threads = False  # whether llama.cpp may have started threads, which outlive their contexts
    is_spoiled = False  # whether the fork came after that: llama.cpp would wait for its threads for ever

    @classmethod
    def check_usable(cls) -> None:
        """Raises UsageError if llama.cpp was at work in the process from which this one was forked."""
        if cls.is_spoiled:
            message, hint = _SPOILED
            raise UsageError(message, hint=hint)

    @classmethod
    def check_same(cls, number: int) -> None:
        """Raises UsageError unless this is still the process of that `number`."""
        if cls.number != number:
            message, hint = _FORKED
            raise UsageError(message, hint=hint)


_LIVE: Final[weakref.WeakSet[_Cell]] = weakref.WeakSet()


class Owner:
    """Owns one native pointer and frees it once: on `close`, on garbage collection, or at exit."""

    def __init__(self, pointer: int, free: Callable[[int], None], *needed: Owner, beside: Owner | None = None) -> None:
        """Owns `pointer`.

        Args:
            free: frees the pointer.
            needed: owners of objects that `free` still uses, so that they are freed later.
            beside: an owner whose lock and passes this one shares.
        """
        self._cell: _Cell = _Cell(pointer, beside._cell if beside else None)
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

    def check_here(self) -> None:
        """Raises UsageError as `pointer`."""
        _ = self.pointer

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
        """Frees the pointer. Does nothing if it has been freed.

        Raises:
            UsageError: called by a signal handler from within a pass.
        """
        cell = self._cell
        with cell.lock:
            if cell.is_in_pass or (cell.beside is not None and cell.beside.is_in_pass):
                message, hint = _IN_PASS
                raise UsageError(message, hint=hint)
            self._finalizer()


def _free(cell: _Cell, free: Callable[[int], None], _: tuple[Owner, ...]) -> None:
    if not cell.pointer:  # in a forked child, or given up at exit
        return
    with cell.lock:
        pointer, cell.pointer = cell.pointer, 0
        if pointer:
            free(pointer)


@contextmanager
def at_work() -> Iterator[None]:
    """Delays the exit of the process while llama.cpp makes an object that has no owner yet.

    Its callbacks into Python would crash without an interpreter.
    """
    cell = _Cell(1)
    try:
        with cell.lock:
            _LIVE.add(cell)
            if not Exit.stops_here():
                yield
    finally:
        if Exit.stops_here():
            with Exit.gate:  # waits for ever
                pass


def _live() -> list[_Cell]:
    while True:
        try:
            return list(_LIVE)
        except RuntimeError:  # another thread has just added a cell
            continue


def _forget_the_parents() -> None:
    """Invalidates the parent's pointers in a forked child, where they are neither used nor freed."""
    Process.number += 1
    Process.is_spoiled = Process.has_threads
    for cell in _live():
        cell.pointer, cell.gone, cell.lock = 0, _FORKED, threading.RLock()


def _let_passes_end() -> None:
    """Stops the passes of daemon threads at exit, and keeps their locks. A pass that does not stop is never freed."""
    Exit.begin()
    for cell in _live():
        if cell.pointer and not cell.lock.acquire(timeout=_PATIENCE_S):
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
