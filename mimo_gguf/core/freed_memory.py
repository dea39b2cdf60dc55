"""What is done with memory that a program has freed, in a process that lives long and has many threads.

glibc keeps it for later. It has up to eight arenas for each core, and each keeps up to 64 MiB at its end: once a block
of up to 32 MiB was freed, blocks of that size no longer come from the system alone, and twice as much may be kept
(mallopt(3), "dynamic mmap threshold"). So memory grows with every thread that has read a long body.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_KEPT_BYTES: Final = 8 << 20  # by an arena; a row of logits and its copies in float64 fit, for they are made every pass
_ARENAS: Final = 2
# The parameters of mallopt, by their numbers in malloc.h: trim threshold, mmap threshold, arenas at most.
_SETTINGS: Final = ((-1, _KEPT_BYTES), (-3, _KEPT_BYTES), (-8, _ARENAS))


def give_back_freed_memory() -> None:
    """Has this process give memory back to the system when it is freed. Without glibc it does nothing.

    Call it before threads are made: arenas that are there stay.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another system, or another C library
        library = ctypes.CDLL(None)
        if library.gnu_get_libc_version:
            for name, value in _SETTINGS:
                library.mallopt(name, value)
