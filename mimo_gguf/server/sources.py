"""Where the models of a server come from: files, and the memory that all of them together may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.log import LOGGER
from mimo_gguf.core.numbers import is_number
from mimo_gguf.core.units import GIB, MIB
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.fit.plan import DeviceFit, FitPlan
from mimo_gguf.fit.solver import USABLE_CONTEXT
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.runtime.llm import LLM
from mimo_gguf.runtime.model import Model

_MOST_PARKED: Final = 8 * GIB  # by default
_ENOUGH: Final = USABLE_CONTEXT  # tokens of a conversation's window for which no other model has to go


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that models may use together.

    Attributes:
        most_bytes: the bytes of each device by its name; of one that is not named, all that is free.
    """

    most_bytes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_machine(cls, share: float | None) -> Room:
        """A share of what is free now: of each GPU's memory, or without a GPU of the host's.

        Raises:
            UsageError: it is not a share.
        """
        if share is None:
            return cls()
        if not is_number(share) or not 0 < share <= 1:
            raise UsageError(f"a share of {share} of the memory", hint="choose a number up to 1: --mem-fraction 0.5")
        *gpus, host = list_devices()
        return cls({device.name: int(device.free_bytes * share) for device in gpus or [host]})

    def devices(self, held: Sequence[FitPlan]) -> tuple[Device, ...]:
        """This machine's devices, with what is free of them beside models that are loaded by these plans."""
        return tuple(
            replace(device, free_bytes=max(min(device.free_bytes - _unseen(fits), self._most(device) - _all(fits)), 0))
            for device, fits in _by_device(held)
        )

    def emptied(self, held: Sequence[FitPlan]) -> tuple[Device, ...]:
        """The same as if these models were not loaded."""
        return tuple(
            replace(device, free_bytes=min(device.free_bytes + _all(fits) - _unseen(fits), self._most(device)))
            for device, fits in _by_device(held)
        )

    def _most(self, device: Device) -> int:
        return self.most_bytes.get(device.name, max(device.total_bytes, device.free_bytes))


def _by_device(held: Sequence[FitPlan]) -> list[tuple[Device, list[DeviceFit]]]:
    """This machine's devices, each with its parts of some plans."""
    return [
        (device, [fit for plan in held for fit in plan.devices if fit.device.name == device.name])
        for device in list_devices()
    ]


def _all(fits: Sequence[DeviceFit]) -> int:
    """The bytes that models occupy on a device."""
    return sum(fit.memory.counted_bytes + fit.memory.output_rows.n_bytes for fit in fits)


def _unseen(fits: Sequence[DeviceFit]) -> int:
    """Those of them that the system calls free: a mapped file's pages, which every token reads."""
    return sum(fit.memory.weights.n_bytes for fit in fits if not fit.device.is_gpu)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A model in a GGUF file.

    Attributes:
        how: arguments of `Model.load`.
        options: its session's options.
        room: the memory for all models.
        parked_bytes: memory of the host for idle conversations; None takes half of what the plan leaves free there.
        force: load it even if it does not fit.
    """

    path: Path
    how: Mapping[str, Any]
    options: SessionOptions
    room: Room
    parked_bytes: int | None = None
    force: bool = False

    def fits_beside(self, held: Sequence[FitPlan]) -> bool:
        """Whether it runs beside these models, and as well as without them but for a longer window.

        Raises:
            MimoGgufError: as `Model.load`.
        """
        plan = self._plan(self.room.devices(held))
        if not plan.fits:
            return False
        best = self._plan(self.room.emptied(held))
        return not best.fits or is_nearly_as_good(plan, best)

    def load(self, held: Sequence[FitPlan], on_plan: Callable[[FitPlan], None] | None = None) -> LLM:
        """Loads it beside these models. Raises MimoGgufError as `Model.load`."""
        devices = self.room.devices(held)
        options = replace(self.options, parked_bytes=self._parked_bytes(devices))
        on_plan = on_plan or self._log_plan
        model = Model.load(self.path, devices=devices, options=options, force=self.force, on_plan=on_plan, **self.how)
        return LLM.of_model(model)

    def _plan(self, devices: Sequence[Device]) -> FitPlan:
        """The plan with as much for parked conversations as was asked for."""
        options = replace(self.options, parked_bytes=self.parked_bytes or 0)
        return Model.plan_load(self.path, devices=devices, options=options, **self.how)

    def _parked_bytes(self, devices: Sequence[Device]) -> int:
        if self.parked_bytes is not None:
            return self.parked_bytes
        spare = max(self._plan(devices).devices[-1].spare_bytes, 0)
        return min(spare // 2, _MOST_PARKED) // MIB * MIB

    def _log_plan(self, plan: FitPlan) -> None:
        LOGGER.info("loading %s: %s", self.path.name, "; ".join(plan.summary()))


def is_nearly_as_good(plan: FitPlan, best: FitPlan) -> bool:
    """Whether a plan gives up nothing of the best one but context beyond what most conversations need."""
    ours, theirs = plan.settings, best.settings
    enough = min(theirs.n_ctx, theirs.n_seq_max * _ENOUGH)
    return (ours.n_gpu_layers, plan.runs_mtp) == (theirs.n_gpu_layers, best.runs_mtp) and ours.n_ctx >= enough
