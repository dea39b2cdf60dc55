"""Warns in the server's log when other programs take the memory that its answers need."""

from __future__ import annotations

import asyncio

from mimo_gguf.core.log import LOGGER
from mimo_gguf.hardware.memory_watch import MemoryWatch
from mimo_gguf.server.models import Models


async def warn_of_shortage(models: Models, watch: MemoryWatch) -> None:
    """Watches the devices of the models that are answering, until it is cancelled. No driver is asked while none is."""
    while True:
        await asyncio.sleep(watch.interval_s)
        if plans := models.at_work:
            watch.names = frozenset(fit.device.name for plan in plans for fit in plan.devices)
            for warning in await asyncio.to_thread(watch.poll):
                LOGGER.warning("%s", warning)
