"""The processor cores that this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """The number of logical cores that this process may run on; a container or taskset may allow fewer than all."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
