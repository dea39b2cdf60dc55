"""A Ray cluster of two machines on this one, in a process of its own: `python -m tests.server.ray_machines`.

It prints the cluster's address. Then each line of stdin is a command: `remove` takes the second machine away as a power
cut does, `add` brings another one. The end of stdin ends the cluster.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mimo_gguf.batch.answerer import Answerer
from mimo_gguf.server.ray_actor import Order
from tests.batch.answerers import Echo

ROOT = Path(__file__).resolve().parents[2]
_STORE_BYTES = 80 << 20
_START_S = 120.0
PAUSE_S = 0.02


@dataclass(slots=True)
class Machines:
    """The cluster, as tests see it. Each machine has one CPU, so that two actors fill it."""

    address: str
    process: subprocess.Popen[str] = field(repr=False)

    def do(self, command: str) -> None:
        """Carries out a command, and waits until it is done."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == command


@contextmanager
def machines() -> Iterator[Machines]:
    """Starts the cluster, and ends it."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
    }
    words = [sys.executable, "-m", "tests.server.ray_machines"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            log.seek(0)
            raise AssertionError(log.read())
        yield Machines(address, process)
        process.stdin.close()
        process.wait(60)


def slow_echo(order: Order) -> Answerer:
    """What answers in actors if no model is needed."""
    return Echo(fingerprint=order.found.fingerprint, pause=lambda row: PAUSE_S)


def main() -> None:
    """Runs the cluster, and does what stdin says."""
    from ray.cluster_utils import Cluster

    how = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=how)
    second = cluster.add_node(wait=False, **how)
    cluster.wait_for_nodes(_START_S)
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        if line.strip() == "remove":
            cluster.remove_node(second, allow_graceful=False)
        else:
            second = cluster.add_node(**how)
        sys.stdout.write(line)
        sys.stdout.flush()
    cluster.shutdown()


if __name__ == "__main__":
    main()
