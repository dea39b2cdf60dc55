"""How many conversations to answer at a time: as many as the memory holds without making any of them slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.model_sizes import model_sizes
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.solver import GOOD_CONTEXT, Wishes
from mimo_gguf.hardware.devices import Device, list_devices
from mimo_gguf.runtime.launch import choose_plan

# A GPU reads its weights once for all conversations, so that more of them cost little until it is busy computing. A CPU
# computes all the time: past a few conversations more of them change nothing but the memory they take.
MOST_ON_GPU: Final = 64
MOST_ON_CPU: Final = 16
_NUMBERS: Final = (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2)


@dataclass(frozen=True, slots=True)
class Slots:
    """A number of conversations, the tokens of context that they share, and the plan of their run.

    Attributes:
        n_ctx: None leaves it to the plan, because not even one conversation has the window that was wished for.
    """

    n_parallel: int
    n_ctx: int | None
    plan: FitPlan


def choose_slots(
    file: GgufFile, wishes: Wishes, options: SessionOptions, *, window: int | None = None, most: int | None = None,
    n_parallel: int | None = None, devices: Sequence[Device] | None = None,
) -> Slots:  # fmt: skip
    """The largest number of conversations with which the plan is as good as with one.

    Args:
        wishes: what is decided; its number of conversations is not looked at. Its context is what all of them share.
        options: those of the session that will be started.
        window: tokens that one conversation needs, prompt and answer together; None for 8192.
        most: conversations that are worth having, for example rows of a batch.
        n_parallel: the number, if it is decided.
        devices: the devices that may be used, the host last; None for all.

    Raises:
        GgufError, UsageError: as `choose_plan`.
    """
    there = list_devices() if devices is None else devices
    window = min(window or GOOD_CONTEXT, model_sizes(file).geometry.context_length)

    def plan(n: int, n_ctx: int | None, **pinned: Any) -> FitPlan:
        n_rows = replace(options, n_parallel=n).n_outputs_max
        return choose_plan(file, replace(wishes, n_seq_max=n, n_outputs_max=n_rows, n_ctx=n_ctx, **pinned), there)

    def with_window(n: int) -> Slots:
        """The window that was wished for, unless layers would leave the GPU for it."""
        wished = plan(n, wishes.n_ctx or n * window)
        free = wished if wishes.n_ctx else plan(n, None)
        if wished.fits and _n_on_gpu(wished) >= _n_on_gpu(free):
            return Slots(n, wished.settings.n_ctx, wished)
        return Slots(n, wishes.n_ctx, free)

    first = with_window(n_parallel or 1)
    if n_parallel is not None or not first.plan.fits or (first.n_ctx is None and not wishes.n_ctx):
        return first
    one = first.plan.settings
    most = min(max(most or MOST_ON_GPU, 1), MOST_ON_GPU if _is_on_gpu(first.plan) else MOST_ON_CPU)
    if wishes.n_ctx:
        most = min(most, max(wishes.n_ctx // window, 1))
    as_one: dict[str, Any] = {"mtp": first.plan.runs_mtp, "kv_type": one.type_k, "n_ubatch": one.n_ubatch}
    if _is_on_gpu(first.plan):
        as_one["n_gpu_layers"] = one.n_gpu_layers
    numbers = [n for n in _NUMBERS if n <= most]
    # They are tried with everything pinned to what one conversation has: that asks for one plan, not for the best one.
    n = next((n for n in numbers if plan(n, wishes.n_ctx or n * window, **as_one).fits), 1)
    return first if n == 1 else Slots(n, wishes.n_ctx or n * window, plan(n, wishes.n_ctx or n * window))


def _n_on_gpu(plan: FitPlan) -> int:
    """The layers on GPUs."""
    n = plan.settings.n_gpu_layers
    return plan.n_layers if n < 0 else min(n, plan.n_layers)


def _is_on_gpu(plan: FitPlan) -> bool:
    return len(plan.devices) > 1 and plan.settings.n_gpu_layers != 0
