"""Measures how fast this machine's memory is. It bounds generation, which reads every weight for every token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.geometry import read_geometry, tensor_group
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.units import MIB, counted
from mimo_gguf.hardware.cards import find_card
from mimo_gguf.hardware.devices import Device

_PER_THREAD_BYTES: Final = 256 * MIB  # more than any cache holds
_ROUNDS: Final = 4


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """The bytes per second that can be read from a memory, and the source of this figure."""

    bytes_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class WeightReads:
    """The bytes of weights that a trunk pass reads, and those that a draft reads; both include the output matrix."""

    per_pass: int
    per_draft: int


def weight_reads(file: GgufFile) -> WeightReads:
    """Computes what generation reads of `file`.

    Of an input embedding only single rows are read, so it counts only if it is the output matrix as well.

    Raises:
        GgufError: not a MiMo file.
    """
    infos = file.infos()
    geometry = read_geometry(file.metadata, infos, where=str(file.path))
    sizes = dict.fromkeys(("trunk", "mtp", "output", "embedding"), 0)
    for info in infos:
        sizes[tensor_group(info.name, geometry.n_trunk)] += info.n_bytes
    has_head = any(info.name == "output.weight" for info in infos)
    output = sizes["output"] + (0 if has_head else sizes["embedding"])
    return WeightReads(sizes["trunk"] + output, sizes["mtp"] // max(geometry.n_mtp, 1) + output)


def find_bandwidth(devices: Sequence[Device], n_threads: int) -> Bandwidth | None:
    """Finds the bandwidth of the device that holds the weights: measured for the host, the catalogue's for a card.

    Args:
        devices: those with weights.

    Returns:
        None for several devices, or for a card that the catalogue does not have.
    """
    if len(devices) != 1:
        return None
    if not devices[0].is_gpu:
        return measure_host(n_threads)
    try:
        card = find_card(devices[0].description, devices[0].total_bytes)
    except UsageError:
        return None
    return Bandwidth(1e9 * card.bandwidth_gbs, f"stated for the {card.name}")


def measure_host(n_threads: int, per_thread_bytes: int = _PER_THREAD_BYTES) -> Bandwidth:
    """Measures reading with `n_threads` threads at once, each over its own array of bytes; the best round counts."""
    arrays = [np.zeros(per_thread_bytes, np.uint8) for _ in range(n_threads)]
    for array in arrays:
        array.fill(1)  # pages that were never written are all the same page
    with ThreadPoolExecutor(n_threads) as pool:
        times = [_read_s(pool, arrays) for _ in range(_ROUNDS)]
    rate = n_threads * per_thread_bytes / min(times)
    threads = counted(n_threads, "thread")
    return Bandwidth(rate, f"measured here: {threads} reading {per_thread_bytes // MIB} MiB each")


def _read_s(pool: ThreadPoolExecutor, arrays: Sequence[np.ndarray[tuple[int], np.dtype[np.uint8]]]) -> float:
    start = time.perf_counter()
    list(pool.map(np.max, arrays))
    return time.perf_counter() - start
