"""How llama.cpp's threads wait for each other: spinning, which is fastest on an idle machine, or asleep.

Between two graph nodes all threads of a pass meet at a barrier. GNU's OpenMP library spins there for some milliseconds
before it sleeps. As soon as another program wants a core, threads spin against each other: 3 tokens a second were
measured where 1788 are possible. Its environment variables are read once, when it is loaded. But it spins a thousand
times less while it manages more threads than there are cores
(https://gcc.gnu.org/git/?p=gcc.git;a=blob;f=libgomp/config/linux/wait.h, `do_spin`). So a few idle threads of its own,
parked here, switch it to sleeping at any moment, and their end switches it back.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any, Final

ENVIRONMENT: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # the user's own choice, which wins


class Waiting:
    """Lets the threads of this process sleep as long as anybody asks for it. For any thread."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._lock = threading.RLock()
        self._asking: set[int] = set()
        self._wake: threading.Event | None = None  # set it, and the parked threads end

    def sleep(self, who: object, *, wanted: bool) -> None:
        """Notes that `who` wants threads to sleep, or no longer does."""
        with self._lock:
            (self._asking.add if wanted else self._asking.discard)(id(who))
            if self._asking and self._wake is None:
                self._park()
            elif not self._asking and self._wake is not None:
                self._wake.set()
                self._wake = None

    def _park(self) -> None:
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
    """What switches between spinning and sleeping; None if that cannot be switched here, or the user has chosen."""
    if any(name in os.environ for name in ENVIRONMENT):
        return None
    library = _gnu_openmp()
    return None if library is None else Waiting(library)


def _gnu_openmp() -> Any:
    """The OpenMP library that this process has loaded, if it is GNU's."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp.so" in line}
        if len(loaded) != 1:  # several: another package brings its own, and which one llama.cpp has is not known
            return None
        library = ctypes.CDLL(loaded.pop())
        library.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        library.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return library


@cache
def _do_nothing() -> ctypes.c_void_p:
    """A function for threads that are only to exist."""
    return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p)
