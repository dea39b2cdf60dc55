"""A Ray cluster: how a program joins it, and how many actors of which size it has room for."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import BackendError, UsageError, first_line

AUTO: Final = "auto"
_PATIENCE_S: Final = 5.0
_START: Final = "ray start --head, and on each further machine: ray start --address=HOST:6379"


@dataclass(frozen=True, slots=True)
class RayNode:
    """A machine of the cluster, with what it lends."""

    n_cpus: float
    n_gpus: float


@dataclass(frozen=True, slots=True)
class RayWishes:
    """What the user says about the actors; None is chosen.

    Attributes:
        address: where the cluster is, `HOST:PORT`; "auto" for the one that this machine belongs to.
        workers: the number of actors.
        n_cpus, n_gpus: what each of them occupies.
    """

    address: str = AUTO
    workers: int | None = None
    n_cpus: int | None = None
    n_gpus: int | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """The actors of a batch, all of one size."""

    n_actors: int
    n_cpus: float
    n_gpus: float

    def room_on(self, node: RayNode) -> int:
        """The number of actors that a machine has room for."""
        parts = [(node.n_cpus, self.n_cpus), (node.n_gpus, self.n_gpus)]
        return int(min(there // needed for there, needed in parts if needed))

    def __str__(self) -> str:
        size = f"{self.n_gpus:g} GPU" if self.n_gpus else f"{self.n_cpus:g} CPU"
        plural = "s" if (self.n_gpus or self.n_cpus) != 1 else ""
        return f"{self.n_actors} {'actor' if self.n_actors == 1 else 'actors'} with {size}{plural} each"


def choose_pool(nodes: Sequence[RayNode], wishes: RayWishes) -> Pool:
    """The actors for a cluster: one on each GPU, or without GPUs one on each machine, unless something else is wished.

    Raises:
        UsageError: no machine has room for one. If their number was given, they are waited for.
    """
    n_gpus = wishes.n_gpus
    if n_gpus is None:
        n_gpus = int(wishes.n_cpus is None and any(node.n_gpus >= 1 for node in nodes))
    smallest = min((node.n_cpus for node in nodes if node.n_cpus >= 1), default=1)
    n_cpus = wishes.n_cpus or (1 if n_gpus else int(smallest))
    pool = Pool(wishes.workers or 0, n_cpus, n_gpus)
    if wishes.workers is None:
        pool = Pool(sum(pool.room_on(node) for node in nodes), n_cpus, n_gpus)
    if not pool.n_actors:
        there = ", ".join(f"{node.n_cpus:g} CPUs and {node.n_gpus:g} GPUs" for node in nodes[:4])
        raise UsageError(
            f"no machine of the Ray cluster has {n_cpus} CPUs and {n_gpus} GPUs; there are {there}",
            hint="--cpus-per-worker N, --gpus-per-worker N; or --workers N to wait for machines that are added",
        )
    return pool


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Makes this program a part of the cluster, unless it is in one already.

    Raises:
        UsageError: Ray is not installed, or the address is none of those that work.
        BackendError: no cluster answers.
    """
    _check_installed()
    import ray

    if ray.is_initialized():
        yield
        return
    _check_address(address)
    try:
        with _quiet_core():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds, RuntimeError and ConnectionError among them
        where = "this machine is in no Ray cluster" if address == AUTO else f"{address}: no Ray cluster answers"
        raise BackendError(f"{where}: {first_line(error)}", hint=_START) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet_core() -> Iterator[None]:
    """Lets Ray's core, which is not Python, say nothing on stderr. What goes wrong is raised."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def ray_nodes() -> list[RayNode]:
    """The machines of the cluster that are alive."""
    import ray

    return [_node(each["Resources"]) for each in ray.nodes() if each["Alive"]]


def this_node() -> RayNode:
    """The machine of the cluster on which this runs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return next(_node(each["Resources"]) for each in ray.nodes() if each["NodeID"] == here)


def _node(resources: dict[str, Any]) -> RayNode:
    return RayNode(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("ray", "pyarrow") if find_spec(name) is None]
    if missing:
        raise UsageError("several machines need Ray", hint="pip install 'mimo-gguf[ray]', on each of them")


def _check_address(address: str) -> None:
    """Refuses an address at which nothing listens: Ray itself tries for minutes."""
    given = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
    if not given or given == AUTO:
        return
    host, _, port = given.rpartition(":")
    if "://" in given or not host or not port.isdecimal():
        hint = "run the command on a machine of the cluster, with --ray auto or --ray HOST:6379"
        raise UsageError(f"{given}: not the address of a Ray cluster, HOST:PORT", hint=hint)
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise BackendError(f"{given}: no Ray cluster answers: {reason}", hint=_START) from None
