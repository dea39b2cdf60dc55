"""Switches how llama.cpp's threads wait for each other: by spinning, which is fastest on an idle machine, or asleep.

Between two graph nodes all threads of a pass meet at a barrier, where GNU's OpenMP library spins for some milliseconds
before it sleeps. If another program needs a core, the threads spin in vain: 3 tokens a second were measured instead of
1788. The library reads its environment variables once, when it is loaded. But it spins a thousand times less while it
manages more threads than there are cores (`do_spin` in
https://gcc.gnu.org/git/?p=gcc.git;a=blob;f=libgomp/config/linux/wait.h). So starting idle OpenMP threads switches it to
sleeping, and ending them switches it back.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any, Final

ENVIRONMENT: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # the user's choice, which is respected


class Waiting:
    """Lets the OpenMP threads of this process sleep as long as one object wants it. For any thread, and for finalizers.

    A finalizer may run in any thread at any time, also in one that has just been started here. So wishes wait in a
    queue, and nobody waits for a thread while holding the lock.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._wishes: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()  # its `put` is safe in finalizers
        self._lock = threading.RLock()
        self._parked: threading.Event | None = None  # set when the idle threads are there; None if none is wanted

    def sleep(self, who: object, *, wanted: bool) -> None:
        """Notes that `who` wants threads to sleep, or no longer does. A finalizer may only call it with False."""
        self._wishes.put((id(who), wanted))
        if wanted:
            with self._lock:
                parked = self._parked
                if parked is None:
                    parked = threading.Event()
                    threading.Thread(target=self._park, args=(parked,), name="mimo-gguf: parked", daemon=True).start()
                    self._parked = parked
            parked.wait()

    def _park(self, parked: threading.Event) -> None:
        """Holds an idle OpenMP team of more threads than there are cores, until nobody wants it any more."""
        self._library.GOMP_parallel(_do_nothing(), None, (os.cpu_count() or 1) + 1, 0)
        parked.set()
        wanting: set[int] = set()
        while True:
            who, wanted = self._wishes.get()
            (wanting.add if wanted else wanting.discard)(who)
            with self._lock:
                if not wanting and self._wishes.empty():
                    self._parked = None
                    return


@cache
def waiting() -> Waiting | None:
    """The switch between spinning and sleeping; None if this system has none, or if the user has chosen."""
    if any(name in os.environ for name in ENVIRONMENT):
        return None
    library = _gnu_openmp()
    return None if library is None else Waiting(library)


def how_threads_wait() -> str:
    """What is in force in this process, in words; for one that has loaded llama.cpp."""
    chosen = [name for name in ENVIRONMENT if name in os.environ]
    if chosen:
        return f"as {' and '.join(chosen)} say{'s' if len(chosen) == 1 else ''}"
    if waiting() is None:
        return "as the OpenMP library does by itself; it cannot be switched here"
    return "by spinning, and asleep while other programs want the cores"


def _gnu_openmp() -> Any:
    """The OpenMP library that this process has loaded, if it is GNU's."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp.so" in line}
        if len(loaded) != 1:  # if another package has brought its own, it is not known which one llama.cpp uses
            return None
        library = ctypes.CDLL(loaded.pop())
        library.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        library.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return library


@cache
def _do_nothing() -> ctypes.c_void_p:
    """The address of a function for threads that have nothing to do."""
    return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p)
