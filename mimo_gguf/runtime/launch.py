"""Starts a run as planned, or with the next smaller plan if llama.cpp runs out of memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from mimo_gguf.core.errors import BackendError, UsageError
from mimo_gguf.core.ggml_types import ftype_name
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.model_sizes import model_sizes
from mimo_gguf.core.paths import command_word
from mimo_gguf.core.units import format_size
from mimo_gguf.engine.session import Session, SessionOptions
from mimo_gguf.fit.plan import DeviceFit, FitPlan
from mimo_gguf.fit.solver import Wishes, candidate_of, most_context, solve
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.llama.api import LlamaModel, ModelOptions, load_model

_OUT_OF_MEMORY: Final = re.compile(r"alloc|memory", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Launch:
    """What was started: the model, its session, its plan, and a note if a first plan failed."""

    native: LlamaModel
    session: Session
    plan: FitPlan
    note: str = ""


def choose_plan(file: GgufFile, wishes: Wishes, devices: Sequence[Device] | None = None) -> FitPlan:
    """The best plan for `file` that keeps to `wishes`.

    It may not fit: `refusal.check_fit` refuses it and names ways out.

    Args:
        devices: the GPUs, then the host; None means those of this machine.

    Raises:
        GgufError: the file is not a MiMo model.
        UsageError: llama.cpp would refuse the settings.
    """
    model = model_sizes(file)
    if wishes.n_ctx == 0:
        wishes = replace(wishes, n_ctx=most_context(model, wishes))
    if wishes.mtp and not model.has_mtp:
        raise UsageError(f"{file.path.name}: has no MTP layer", hint="leave --mtp out")
    number = file.value("general.file_type")
    file_type = ftype_name(number) if isinstance(number, int) else ""
    plan = solve([candidate_of(model, file_type)], devices or list_devices(), wishes).plan
    return replace(plan, file_type=file_type)


def launch(file: GgufFile, plan: FitPlan, wishes: Wishes, options: SessionOptions) -> Launch:
    """Loads `file` as planned. If memory runs out, tries the next smaller plan that keeps to `wishes`, once.

    Args:
        options: threads, drafts and so on. Context, KV type, MTP and micro-batch come from the plan.

    Raises:
        BackendError: llama.cpp failed for another reason, or with the smaller plan, too.
    """
    try:
        return _start(file, plan, options)
    except BackendError as error:
        if not _is_memory(error):
            raise
        first = error
    smaller = next_smaller(file, plan, wishes)
    if smaller is None:
        raise BackendError(first.message, hint=f"although {_to_spare(plan)}; {_report(file)}")
    try:
        started = _start(file, smaller, options)
    except BackendError as error:
        raise BackendError(f"{error.message}; before, also with: {plan.summary()[0]}", hint=_report(file)) from None
    note = (
        f"out of memory, although {_to_spare(plan)}: {plan.summary()[0]} ({_reason(first)}). Running with "
        f"{smaller.summary()[0]} instead. The estimate was too low; {_report(file)}"
    )
    return replace(started, note=note)


def next_smaller(file: GgufFile, plan: FitPlan, wishes: Wishes) -> FitPlan | None:
    """The best plan with half the memory of `plan` for caches and buffers; None if `wishes` allow none.

    The memory of the GPUs is reduced for it, or without GPUs that of the host.
    """
    free = {fit.device.name: fit.needed_bytes - _movable_bytes(fit) // 2 for fit in _blamed(plan)}
    devices = [
        replace(fit.device, free_bytes=min(fit.free_bytes, free.get(fit.device.name, fit.free_bytes)))
        for fit in plan.devices
    ]
    smaller = choose_plan(file, wishes, devices)
    return smaller if smaller.fits and smaller.settings != plan.settings else None


def session_options(plan: FitPlan, options: SessionOptions) -> SessionOptions:
    """`options` with what the plan decides: context, KV type, MTP and micro-batch."""
    s = plan.settings
    return replace(options, n_ctx=s.n_ctx, kv_type=s.type_k.name.lower(), mtp=s.mtp, n_batch=s.n_batch)


def model_options(plan: FitPlan) -> ModelOptions:
    """The options with which the plan's model is loaded."""
    devices = tuple(fit.device.pointer for fit in plan.devices[:-1])
    s = plan.settings
    return ModelOptions(n_gpu_layers=s.n_gpu_layers, devices=devices, tensor_split=s.tensor_split, load_mtp=s.mtp)


def _start(file: GgufFile, plan: FitPlan, options: SessionOptions) -> Launch:
    native = load_model(file.path, model_options(plan))
    try:
        return Launch(native, Session(native, session_options(plan, options)), plan)
    except BaseException:
        native.close()
        raise


def _blamed(plan: FitPlan) -> tuple[DeviceFit, ...]:
    """The devices whose memory probably ran out: the GPUs, or the host if there are none."""
    return plan.devices[:-1] or plan.devices


def _movable_bytes(fit: DeviceFit) -> int:
    """The bytes that a smaller plan can save: KV caches and compute buffers."""
    return fit.memory.kv_cache.n_bytes + fit.memory.compute.n_bytes


def _reason(error: BackendError) -> str:
    """llama.cpp's reason, without the file's name, which may contain any words."""
    return error.message.rpartition("llama.cpp cannot")[2].partition(": ")[2]


def _is_memory(error: BackendError) -> bool:
    return bool(_OUT_OF_MEMORY.search(_reason(error)))


def _to_spare(plan: FitPlan) -> str:
    tightest = min(_blamed(plan), key=lambda fit: fit.spare_bytes)
    spare = format_size(max(tightest.spare_bytes, 0))
    return f"the plan left {spare} free on {tightest.device.name}"


def _report(file: GgufFile) -> str:
    return f"please report it with the output of: mimo-gguf fit {command_word(file.path.name)} --json"
