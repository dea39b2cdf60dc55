"""Memory that threads have freed goes back to the system, and without the setting it does not."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_MIB = 1 << 20
_PROGRAM = """
import ctypes, os, sys, threading
from mimo_gguf.core.freed_memory import give_back_freed_memory
if sys.argv[1] == "set":
    give_back_freed_memory()
library = ctypes.PyDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
library.free(library.malloc(30 << 20))  # from here on such blocks come from arenas
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def work(barrier):
    barrier.wait()
    ctypes.memset(block := library.malloc(20 << 20), 1, 20 << 20)
    barrier.wait()
    library.free(block)
    barrier.wait()
before = resident()
barrier = threading.Barrier(9)
threads = [threading.Thread(target=work, args=(barrier,)) for _ in range(8)]
for thread in threads:
    thread.start()
for _ in range(3):
    barrier.wait()
print(resident() - before)
for thread in threads:
    thread.join()
"""


def _kept(how: str) -> int:
    """The bytes that a process keeps after eight threads have freed 20 MiB each."""
    run = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_given_back() -> None:
    assert _kept("set") < 10 * _MIB
    assert _kept("not set") > 80 * _MIB
