"""Starting a run the way the plan chose, and one step smaller if llama.cpp runs out of memory all the same."""

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
    """What was started: the model, its session, the plan they follow, and a line if a first plan had failed."""

    native: LlamaModel
    session: Session
    plan: FitPlan
    note: str = ""


def choose_plan(file: GgufFile, wishes: Wishes, devices: Sequence[Device] | None = None) -> FitPlan:
    """The best plan for `file` on `devices` (the host last; None looks at this machine) that keeps to `wishes`.

    It may not fit: `refusal.check_fit` refuses it and names ways out.

    Raises:
        GgufError: not a MiMo file.
        UsageError: settings llama.cpp would refuse.
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
    """Loads `file` as `plan` says. If memory runs out, once more with the next smaller plan that keeps to `wishes`.

    Args:
        options: what a plan does not decide (threads, drafts); its context, KV type and MTP are the plan's.

    Raises:
        BackendError: llama.cpp refused, for another reason, or the smaller plan too.
    """
    try:
        return _start(file, plan, options)
    except BackendError as error:
        if not _is_memory(error):
            raise
        first = error
    smaller = next_smaller(file, plan, wishes)
    if smaller is None:
        raise BackendError(first.message, hint=f"{_to_spare(plan)} all the same; {_report(file)}")
    try:
        started = _start(file, smaller, options)
    except BackendError as error:
        raise BackendError(f"{error.message}; before that also with: {plan.summary()[0]}", hint=_report(file)) from None
    note = (
        f"out of memory, although {_to_spare(plan)}: {plan.summary()[0]} ({_reason(first)}). Running with "
        f"{smaller.summary()[0]} instead. The estimate is wrong by more than what was left; {_report(file)}"
    )
    return replace(started, note=note)


def next_smaller(file: GgufFile, plan: FitPlan, wishes: Wishes) -> FitPlan | None:
    """The best plan in half of what the caches and buffers of `plan` took; None if `wishes` leave no room for one.

    The GPUs count as that much smaller, or, on a machine without one, the host.
    """
    free = {fit.device.name: fit.needed_bytes - _movable_bytes(fit) // 2 for fit in _blamed(plan)}
    devices = [
        replace(fit.device, free_bytes=min(fit.free_bytes, free.get(fit.device.name, fit.free_bytes)))
        for fit in plan.devices
    ]
    smaller = choose_plan(file, wishes, devices)
    return smaller if smaller.fits and smaller.settings != plan.settings else None


def session_options(plan: FitPlan, options: SessionOptions) -> SessionOptions:
    """`options` with what the plan decides: window, KV type, MTP, micro-batch."""
    s = plan.settings
    return replace(options, n_ctx=s.n_ctx, kv_type=s.type_k.name.lower(), mtp=s.mtp, n_batch=s.n_batch)


def model_options(plan: FitPlan) -> ModelOptions:
    """How the plan's model is loaded."""
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
    """Where memory is taken to have run out: the GPUs, or the host if there are none."""
    return plan.devices[:-1] or plan.devices


def _movable_bytes(fit: DeviceFit) -> int:
    """What a smaller plan has less of: caches and compute buffers."""
    return fit.memory.kv_cache.n_bytes + fit.memory.compute.n_bytes


def _reason(error: BackendError) -> str:
    """llama.cpp's words, without the file's name, in which anything may stand."""
    return error.message.rpartition("llama.cpp cannot")[2].partition(": ")[2]


def _is_memory(error: BackendError) -> bool:
    return bool(_OUT_OF_MEMORY.search(_reason(error)))


def _to_spare(plan: FitPlan) -> str:
    tightest = min(_blamed(plan), key=lambda fit: fit.spare_bytes)
    spare = format_size(max(tightest.spare_bytes, 0))
    return f"the plan left {spare} free on {tightest.device.name}"


def _report(file: GgufFile) -> str:
    return f"please report it with the output of: mimo-gguf fit {command_word(file.path.name)} --json"
