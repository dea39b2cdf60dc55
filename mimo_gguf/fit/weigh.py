"""The making of a plan: what each device holds for a file and settings, with as many layers on GPUs as fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.ggml_types import ftype_name
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.kv_cache import CONTEXT_STEP, parse_kv_type
from mimo_gguf.core.model_sizes import ModelSizes, model_sizes
from mimo_gguf.core.units import MIB
from mimo_gguf.fit.largest import largest_with_room
from mimo_gguf.fit.layer_split import deal, most_layers
from mimo_gguf.fit.plan import DeviceFit, FitPlan
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.memory.parts import DeviceMemory
from mimo_gguf.memory.predict import layer_bytes, layer_homes, predict_memory
from mimo_gguf.memory.run import Placement, RunSettings, session_settings

# Beside llama.cpp's buffers. On the host: Python, the libraries and the vocabulary (100 MiB measured after loading),
# and what the kernels need while they work. On a GPU: kernels and cuBLAS handles that a CUDA-like driver loads at first
# use (estimated, not measured); the context itself is already missing from its free memory.
PROGRAM_BYTES: Final = 256 * MIB
LAZY_DRIVER_BYTES: Final = 96 * MIB
MARGIN_BYTES: Final = 128 * MIB
_LAZY_BACKENDS: Final = ("CUDA", "ROCm", "MUSA", "SYCL", "Vulkan")


def plan_fit(
    path: str | Path,
    *,
    n_ctx: int,
    type_k: str = "f16",
    type_v: str = "f16",
    n_ubatch: int = 512,
    mtp: bool = True,
    n_gpu_layers: int | None = None,
    flash_attn: bool | None = None,
    devices: Sequence[Device] | None = None,
    n_seq_max: int = 1,
    n_outputs_max: int = 4,
) -> FitPlan:
    """The plan of running the GGUF at `path`. It loads nothing, and also returns a plan that does not fit.

    Args:
        n_ctx: tokens; 0 means those the model was trained for.
        n_gpu_layers: number of layers on the GPUs; None means as many as fit, -1 all.
        flash_attn: None leaves the choice to llama.cpp, which turns it on.
        devices: the devices to plan for, the host last; None means those of this machine.

    Raises:
        GgufError: not a GGUF, or not a MiMo file.
        UsageError: llama.cpp would refuse the settings.
    """
    file = read_gguf(path)
    model = model_sizes(file)
    settings = session_settings(
        n_ctx=n_ctx or model.geometry.context_length,
        n_ubatch=n_ubatch,
        n_seq_max=n_seq_max,
        n_outputs_max=n_outputs_max,
        type_k=parse_kv_type(type_k),
        type_v=parse_kv_type(type_v),
        flash_attn=True if flash_attn is None else flash_attn,
        mtp=mtp,
    )
    number = file.value("general.file_type")
    file_type = ftype_name(number) if isinstance(number, int) else ""
    plan = plan_model(model, settings, devices if devices is not None else list_devices(), n_gpu_layers)
    return replace(plan, file_type=file_type)


def plan_model(
    model: ModelSizes,
    settings: RunSettings,
    devices: Sequence[Device],
    n_gpu_layers: int | None = None,
    *,
    at_least: int = 0,
) -> FitPlan:
    """The plan of running `model`, as by `plan_fit`; `devices` ends with the host.

    GPUs without room for the buffers alone are left out, and the plan is made again without them.

    Args:
        at_least: number of layers on the GPUs; if fewer fit, the plan returned does not fit.

    Raises:
        UsageError: llama.cpp would refuse the settings, or the devices do not end with the host.
    """
    if not devices or devices[-1].is_gpu:
        raise UsageError("the devices of a plan end with the host", hint="use those of list_devices()")
    left_out: tuple[Device, ...] = ()
    while True:
        trials = _Trials(model, settings, devices, is_pinned=n_gpu_layers is not None)
        plan = trials.with_most(at_least) if n_gpu_layers is None else trials.with_pinned(n_gpu_layers)
        useless = () if plan.fits else _useless_gpus(trials, plan, n_gpu_layers)
        if not useless:
            return replace(plan, left_out=left_out)
        left_out += useless
        devices = [device for device in devices if device not in useless]


class _Trials:
    """Plans of one run on the same devices that differ in the number of layers on the GPUs.

    Over several GPUs each plan starts from the split of the one before it.
    """

    def __init__(self, model: ModelSizes, settings: RunSettings, devices: Sequence[Device], *, is_pinned: bool) -> None:
        self._model = model
        self._settings = settings
        self._devices = devices
        self._is_pinned = is_pinned
        self._n_gpus = len(devices) - 1
        self._n_layers = model.geometry.block_count + 1
        self._before: FitPlan | None = None

    def at(self, count: int) -> FitPlan:
        """The plan with `count` layers on the GPUs."""
        settings = replace(self._settings, n_gpu_layers=count, tensor_split=())
        plan = _dealt(self._model, settings, self._devices, self._before)
        self._before = plan if self._n_gpus > 1 else None
        return replace(plan, pinned_layers=self._is_pinned)

    def with_pinned(self, n_gpu_layers: int) -> FitPlan:
        """The plan with `n_gpu_layers` layers on the GPUs (below zero: all), whether it fits or not."""
        wanted = self._n_layers if n_gpu_layers < 0 else min(n_gpu_layers, self._n_layers)
        if not self._n_gpus:
            return self.at(0)
        plan = self.at(wanted)
        if self._n_gpus > 1 and not plan.fits_on_gpus and wanted < self._n_layers:
            for count in range(max(wanted - 4, 0), wanted + 1):  # the split of a plan with fewer leads to one that fits
                plan = self.at(count)
        return plan

    def with_most(self, at_least: int) -> FitPlan:
        """The plan with the most layers on the GPUs that fit; if no such plan fits, the one with all layers there."""
        if not self._n_gpus:
            return self.at(0)
        whole = self.at(self._n_layers)
        if whole.fits:
            return whole
        guess = at_least or self._n_layers + _spare_layers(whole)
        most = largest_with_room(self.at, _spare_layers, at_least, self._n_layers, guess)
        return most if most is not None and most.fits else whole


def _useless_gpus(trials: _Trials, plan: FitPlan, n_gpu_layers: int | None) -> tuple[Device, ...]:
    """The GPUs that have no room for the buffers alone, of a `plan` that does not fit.

    If the user asks for layers on GPUs, the last GPU is kept: the plan then says what is missing there.
    """
    if len(plan.devices) == 1:
        return ()
    if n_gpu_layers and (len(plan.devices) == 2 or min(_layers_and_rooms(plan)[1]) >= 0):
        return ()
    found = tuple(fit.device for fit in trials.at(0).devices[:-1] if not fit.fits)
    return () if n_gpu_layers and len(found) == len(plan.devices) - 1 else found


def _spare_layers(plan: FitPlan) -> int:
    """The approximate number of further layers that the GPUs have room for; below zero, the number that is too many."""
    spare = most_layers(*_layers_and_rooms(plan)) - plan.settings.n_gpu_layers
    return max(spare, 0) if plan.fits_on_gpus else min(spare, -1)


def _layers_and_rooms(plan: FitPlan) -> tuple[list[list[int]], list[int]]:
    """The bytes of every layer on each GPU, and the room of each GPU beside buffers, driver and margin."""
    gpus = plan.devices[:-1]
    layers = [layer_bytes(plan.model, plan.settings, fit.device.traits) for fit in gpus]
    rooms = [fit.spare_bytes + fit.memory.weights.n_bytes + fit.memory.kv_cache.n_bytes for fit in gpus]
    return layers, rooms


def _spare_context(plan: FitPlan) -> int:
    """The approximate number of further context steps that every device has room for; below zero, those too many."""
    n_steps = max(plan.settings.n_ctx // CONTEXT_STEP, 1)
    return min(fit.spare_bytes // max(fit.memory.kv_cache.n_bytes // n_steps, 1) for fit in plan.devices)


def _dealt(
    model: ModelSizes, settings: RunSettings, devices: Sequence[Device], before: FitPlan | None = None
) -> FitPlan:
    """The plan with its layers dealt out as llama.cpp does, or by what fits if a GPU has too many then.

    Args:
        before: a plan with another number of layers, for which llama.cpp's split was too much; its buffers are near
            enough to deal by.
    """
    plan = before or _weigh(model, settings, devices)
    for _ in range(_DEALS if len(devices) > 2 else 0):
        if plan is not before and plan.fits_on_gpus:
            return plan
        layers, rooms = _layers_and_rooms(plan)
        counts = deal([sizes[plan.n_layers - settings.n_gpu_layers :] for sizes in layers], rooms)
        if counts is None or (plan is not before and counts == plan.settings.tensor_split):
            break
        plan = _weigh(model, replace(settings, tensor_split=counts), devices)
    return plan if plan is not before else _weigh(model, settings, devices)


_DEALS: Final = 4  # the split changes the buffers a little, so each split is weighed and dealt again


def _weigh(model: ModelSizes, settings: RunSettings, devices: Sequence[Device]) -> FitPlan:
    *gpus, host = devices
    places = [Placement(gpu.name, gpu.free_bytes, gpu.traits) for gpu in gpus]
    if len(gpus) > 1:  # the split that llama.cpp would make, in numbers of layers
        homes = layer_homes(model.geometry, settings, places)
        settings = replace(settings, tensor_split=tuple(homes.count(index) for index in range(len(gpus))))
    needs = predict_memory(model, settings, places, Placement(host.name, host.free_bytes, host.traits))
    fits = [DeviceFit(gpu, _with_driver(gpu, memory)) for gpu, memory in zip(gpus, needs[:-1], strict=True)]
    shared = sum(fit.needed_bytes for fit in fits if fit.device.shares_host_memory)
    on_host = replace(
        needs[-1], parked=settings.parked_bytes, shared=shared, program=PROGRAM_BYTES, margin=MARGIN_BYTES
    )
    fits.append(DeviceFit(host, on_host))
    return FitPlan(model, settings, tuple(fits))


def _with_driver(gpu: Device, memory: DeviceMemory) -> DeviceMemory:
    driver = LAZY_DRIVER_BYTES if gpu.backend in _LAZY_BACKENDS else 0
    return replace(memory, driver=driver, margin=MARGIN_BYTES)


def largest_context(plan: FitPlan, at_most: int) -> int:
    """The largest context (a multiple of 256, up to `at_most`) that fits with all else unchanged; 0 if none does."""

    def at(steps: int) -> FitPlan:
        return changed(plan, n_ctx=steps * CONTEXT_STEP)

    guess = plan.settings.n_ctx // CONTEXT_STEP + _spare_context(plan)
    largest = largest_with_room(at, _spare_context, 1, at_most // CONTEXT_STEP + 1, guess)
    return largest.settings.n_ctx if largest is not None else 0


def changed(plan: FitPlan, *, model: ModelSizes | None = None, **changes: Any) -> FitPlan:
    """The plan with other settings or another model; the number of layers is chosen again unless it was pinned."""
    settings = replace(plan.settings, **changes)
    layers = settings.n_gpu_layers if plan.pinned_layers or "n_gpu_layers" in changes else None
    return plan_model(model or plan.model, settings, [fit.device for fit in plan.devices], layers)
