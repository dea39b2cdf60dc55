"""A worker in place of a GPU (`mimo-gguf worker`), for a rehearsal on a machine that has none."""

from __future__ import annotations

import os
from typing import Final

from mimo_gguf.hardware.rpc import add_workers

ENDPOINT: Final = "MIMO_GGUF_BENCHMARK_WORKER"  # an environment variable, because each process of a run needs it


def add_worker() -> None:
    """Adds the devices of the run's worker, if it has one, to this process. Raises as `add_workers`."""
    if endpoint := os.environ.get(ENDPOINT):
        add_workers([endpoint])
