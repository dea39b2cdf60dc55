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
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any, Final

ENVIRONMENT: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # the user's choice, which is respected


class Waiting:
    """Lets the OpenMP threads of this process sleep as long as one object wants it. For any thread."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._lock = threading.RLock()
        self._wanting: set[int] = set()
        self._wake: threading.Event | None = None  # ends the idle threads when it is set

    def sleep(self, who: object, *, wanted: bool) -> None:
        """Notes that `who` wants threads to sleep, or no longer does."""
        with self._lock:
            (self._wanting.add if wanted else self._wanting.discard)(id(who))
            if self._wanting and self._wake is None:
                self._park()
            elif not self._wanting and self._wake is not None:
                self._wake.set()
                self._wake = None

    def _park(self) -> None:
        """Starts one thread whose idle OpenMP team has more threads than there are cores."""
        wake, parked = threading.Event(), threading.Event()
        n_threads = (os.cpu_count() or 1) + 1

        def park() -> None:
            self._library.GOMP_parallel(_do_nothing(), None, n_threads, 0)
            parked.set()
            wake.wait()

        threading.Thread(target=park, name="mimo-gguf: parked", daemon=True).start()
        parked.wait()
        self._wake = wake


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
