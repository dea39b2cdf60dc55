"""Watching free memory while a model runs: a warning before other programs push it into swapping or failing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from mimo_gguf.core.units import MIB, format_size
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.hardware.nvml import nvidia_cards, other_uses

LOW_BYTES: Final = 128 * MIB
_AGAIN_BYTES: Final = 2 * LOW_BYTES  # free again by so much, a device may be warned of once more


def other_programs(device: Device) -> str:
    """Who else is on `device`, in words: the two that take most, if that is known."""
    return ", ".join(use.program for use in other_uses(device, nvidia_cards())[:2]) or "other programs"


class MemoryWatch:
    """Polls the devices of a plan between answers; each device is warned of once until it has recovered.

    Args:
        names: devices the run uses, as in its plan.
        interval_s: asking a driver costs a millisecond or so; sooner polls return nothing.
    """

    def __init__(
        self,
        names: Sequence[str],
        interval_s: float = 2.0,
        read: Callable[[], Sequence[Device]] = list_devices,
        clock: Callable[[], float] = time.monotonic,
        others: Callable[[Device], str] = other_programs,
    ) -> None:
        self._names = frozenset(names)
        self._interval_s = interval_s
        self._read = read
        self._clock = clock
        self._others = others
        self._last = -interval_s
        self._warned: set[str] = set()

    def poll(self) -> tuple[str, ...]:
        """Warnings that are new since the last poll, one line each."""
        now = self._clock()
        if now - self._last < self._interval_s:
            return ()
        self._last = now
        warnings = []
        for device in self._read():
            if device.name not in self._names or not device.total_bytes:
                continue
            if device.free_bytes >= _AGAIN_BYTES:
                self._warned.discard(device.name)
            elif device.free_bytes < LOW_BYTES and device.name not in self._warned:
                self._warned.add(device.name)
                warnings.append(
                    f"only {format_size(device.free_bytes)} are left on {device.name}: {self._others(device)} need it "
                    "too, and answers will slow down or fail when it is gone"
                )
        return tuple(warnings)
