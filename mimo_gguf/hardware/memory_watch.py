"""The watch on free memory while a model runs: it warns before other programs make the run swap or fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from mimo_gguf.core.units import MIB, format_size
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.hardware.nvml import nvidia_cards, other_uses

LOW_BYTES: Final = 128 * MIB
_AGAIN_BYTES: Final = 2 * LOW_BYTES  # with so many free bytes a device has recovered


def other_programs(device: Device) -> str:
    """The two other programs that use most of `device`, in words; `other programs` if they are unknown."""
    return ", ".join(use.program for use in other_uses(device, nvidia_cards())[:2]) or "other programs"


class MemoryWatch:
    """Polls the devices of a plan between answers, and warns of each once until it has recovered.

    Args:
        names: the devices that the run uses, as in its plan.
        interval_s: seconds between two questions to the drivers, which cost a millisecond; a poll before that is empty.
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
        """The warnings that are new since the last poll, one line each."""
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
                    "too, and answers will slow down or fail when it is used up"
                )
        return tuple(warnings)
