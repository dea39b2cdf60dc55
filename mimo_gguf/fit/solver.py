"""The choice of how to run: file type, layers on the GPU, context, KV cache and MTP, for the available memory.

These wishes of a user of a reasoning model decide, in this order (`_worth`; contexts are those of one conversation):

1. every layer on the GPU, as long as 4096 tokens of context fit: a layer on the CPU costs more speed than anything
   below can gain;
2. a context of 8192, below which many a chain of thought is cut off;
3. MTP drafting, 1.3 to 1.6 times the speed at no cost in quality;
4. a context of 16384;
5. the better file type;
6. more context, up to what the model was trained for; without a GPU up to 16384. llama.cpp clears the whole cache at
   the start (4.6 GiB and several seconds for 32768), and a CPU would need an hour to fill it;
7. an f16 KV cache rather than q8_0, then the usual micro-batch rather than a small one.

A q8_0 cache is chosen if it makes one of the above possible; it is practically lossless
(https://github.com/ikawrakow/ik_llama.cpp/pull/1527). q4_0 is used only if the user asks for it, see `advice`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.core.kv_cache import MOST_CONTEXT, can_hold_heads
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.core.units import format_size
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.refusal import plan_json
from mimo_gguf.fit.ways_out import SMALLEST_CONTEXT, smaller_types
from mimo_gguf.fit.weigh import largest_context, plan_model
from mimo_gguf.hardware.devices import Device
from mimo_gguf.memory.run import RunSettings, session_settings

USABLE_CONTEXT: Final = 4096
GOOD_CONTEXT: Final = 8192
BETTER_CONTEXT: Final = 16384
USUAL_UBATCH: Final = 512
SMALL_UBATCH: Final = 128


@dataclass(frozen=True, slots=True)
class Wishes:
    """The settings that the user has decided already; None leaves one to the solver.

    Attributes:
        n_ctx: tokens of context of all conversations together; 0 means the same as None.
        n_seq_max: conversations at a time; they share the context in equal parts.
        n_outputs_max: rows of logits a pass may ask for; 0 means a token and one draft for each conversation.
        parked_bytes: memory of the host for idle conversations that have no slot.
        exact: as `SessionOptions.exact`; drafts gain nothing then, so there are none unless `mtp` is True.
    """

    n_ctx: int | None = None
    kv_type: GgmlType | None = None
    mtp: bool | None = None
    n_ubatch: int | None = None
    n_gpu_layers: int | None = None
    n_seq_max: int = 1
    n_outputs_max: int = 0
    flash_attn: bool = True
    exact: bool = False
    parked_bytes: int = 0

    @property
    def drafting(self) -> bool | None:
        """Whether to draft; None leaves it to the solver."""
        return False if self.mtp is None and self.exact else self.mtp


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that exists or could be made: the name of its type, and its sizes."""

    name: str
    model: ModelSizes


@dataclass(frozen=True, slots=True)
class Solution:
    """The choice: a file type, the plan for it, what it gives up, and what the next steps would cost."""

    file_type: str
    plan: FitPlan
    gave_up: tuple[str, ...]
    next_steps: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "file_type": self.file_type,
            **plan_json(self.plan),
            "gave_up": list(self.gave_up),
            "next_steps": list(self.next_steps),
        }


def solve(candidates: Sequence[Candidate], devices: Sequence[Device], wishes: Wishes = Wishes()) -> Solution:
    """The best way to run one of `candidates` (worst type first, best last) on `devices` (the host last).

    If nothing fits, the solution has the plan with the fewest missing bytes; `check_fit` refuses it.

    Raises:
        UsageError: there are no candidates, or llama.cpp would refuse the settings.
    """
    if not candidates:
        raise UsageError("no file to choose a plan for", hint="name a GGUF file, or a checkpoint with --type")
    plans: list[tuple[int, FitPlan]] = []
    for stage, is_enough in ((_whole_plans, _is_good), (_frugal_plans, _is_usable), (_partial_plans, _is_good)):
        plans += [
            (rank, plan) for rank, candidate in enumerate(candidates) for plan in stage(candidate, devices, wishes)
        ]
        fitting = [(rank, plan) for rank, plan in plans if plan.fits]
        if any(is_enough(plan, wishes) for _, plan in fitting):
            break
    if fitting:
        rank, plan = max(fitting, key=lambda entry: _worth(*entry))
    else:
        rank, plan = min(plans, key=lambda entry: _missing_bytes(entry[1]))
    next_steps = tuple(_next_steps(candidates, rank, plan, devices, wishes)) if plan.fits else ()
    return Solution(candidates[rank].name, plan, tuple(_gave_up(plan, wishes)), next_steps)


def _worth(rank: int, plan: FitPlan) -> tuple[float, ...]:
    s = plan.settings
    n_ctx = s.n_ctx // s.n_seq_max
    on_gpu = s.n_gpu_layers if len(plan.devices) > 1 or plan.left_out else plan.n_layers
    return (
        n_ctx >= USABLE_CONTEXT,
        on_gpu == plan.n_layers,
        min(n_ctx, GOOD_CONTEXT),
        on_gpu,
        plan.runs_mtp,
        min(n_ctx, BETTER_CONTEXT),
        rank,
        n_ctx,
        s.type_k is GgmlType.F16,
        s.n_ubatch,
    )


def _is_good(plan: FitPlan, wishes: Wishes) -> bool:
    """Whether no plan of a later stage could be worth more."""
    return _is_usable(plan, wishes, GOOD_CONTEXT) and (plan.runs_mtp or not plan.model.has_mtp)


def _is_usable(plan: FitPlan, wishes: Wishes, n_ctx: int = USABLE_CONTEXT) -> bool:
    """Whether no plan with fewer layers on the GPUs could be worth more."""
    s = plan.settings
    no_gpu = len(plan.devices) == 1 and not plan.left_out
    on_gpu = no_gpu or s.n_gpu_layers == plan.n_layers or wishes.n_gpu_layers is not None
    return on_gpu and (bool(wishes.n_ctx) or s.n_ctx >= s.n_seq_max * min(n_ctx, plan.model.geometry.context_length))


def _missing_bytes(plan: FitPlan) -> int:
    return sum(max(fit.needed_bytes - fit.free_bytes, 0) for fit in plan.devices)


def _whole_plans(candidate: Candidate, devices: Sequence[Device], wishes: Wishes) -> Iterator[FitPlan]:
    """The plans with all layers on the GPUs, or as many as the user chose, and the largest context that fits."""
    for settings in _combinations(candidate.model, wishes):
        layers = -1 if wishes.n_gpu_layers is None else wishes.n_gpu_layers
        yield _with_best_context(plan_model(candidate.model, settings, devices, layers), wishes)


def _frugal_plans(candidate: Candidate, devices: Sequence[Device], wishes: Wishes) -> Iterator[FitPlan]:
    """The same plans with small micro-batches, which need smaller compute buffers."""
    if wishes.n_ubatch is None:
        yield from _whole_plans(candidate, devices, replace(wishes, n_ubatch=SMALL_UBATCH))


def _partial_plans(candidate: Candidate, devices: Sequence[Device], wishes: Wishes) -> Iterator[FitPlan]:
    """The plans with as many layers on the GPUs as fit beside a good context.

    A plan with fewer layers than the best so far is not worked out: it returns as one that does not fit.
    """
    if wishes.n_gpu_layers is None and len(devices) > 1:
        most = 0
        for settings in reversed(list(_combinations(candidate.model, wishes))):
            plan = plan_model(candidate.model, settings, devices, at_least=most)
            most = plan.settings.n_gpu_layers if plan.fits else most
            yield plan


def _combinations(model: ModelSizes, wishes: Wishes) -> Iterator[RunSettings]:
    """The combinations of KV type and drafting that the user left open, at a good context."""
    can_q8 = wishes.flash_attn and can_hold_heads(GgmlType.Q8_0, model.geometry)
    free_types = [GgmlType.F16, GgmlType.Q8_0] if can_q8 else [GgmlType.F16]
    kv_types = free_types if wishes.kv_type is None else [wishes.kv_type]
    drafting = [wishes.drafting] if wishes.drafting is not None else [True, False][: 2 if model.has_mtp else 1]
    for kv_type, mtp in itertools.product(kv_types, drafting):
        yield settings_for(model, replace(wishes, kv_type=kv_type, mtp=mtp))


def settings_for(model: ModelSizes, wishes: Wishes) -> RunSettings:
    """The settings for `wishes`, with the usual value of everything that they leave open."""
    kv_type = GgmlType.F16 if wishes.kv_type is None else wishes.kv_type
    return session_settings(
        n_ctx=wishes.n_ctx or wishes.n_seq_max * min(GOOD_CONTEXT, model.geometry.context_length),
        n_ubatch=USUAL_UBATCH if wishes.n_ubatch is None else wishes.n_ubatch,
        n_seq_max=wishes.n_seq_max,
        n_outputs_max=wishes.n_outputs_max or 2 * wishes.n_seq_max,
        type_k=kv_type,
        type_v=kv_type,
        flash_attn=wishes.flash_attn,
        mtp=wishes.drafting is not False,
        exact=wishes.exact,
        parked_bytes=wishes.parked_bytes,
    )


def _with_best_context(plan: FitPlan, wishes: Wishes) -> FitPlan:
    """The plan with the largest context that fits; unchanged if the context is given or not even a small one fits."""
    if wishes.n_ctx:
        return plan
    most = most_context(plan.model, wishes)
    if len(plan.devices) == 1:
        most = min(most, wishes.n_seq_max * BETTER_CONTEXT)
    whole = _at(plan, most) if plan.fits else plan
    if whole.fits:  # the usual case, without the search
        return whole
    n_ctx = largest_context(plan, whole.settings.n_ctx - 1)
    return _at(plan, n_ctx) if n_ctx >= min(wishes.n_seq_max * SMALLEST_CONTEXT, most) else plan


def most_context(model: ModelSizes, wishes: Wishes) -> int:
    """The largest useful context in tokens: what the model was trained for, for each conversation."""
    return min(wishes.n_seq_max * model.geometry.context_length, MOST_CONTEXT)


def _at(plan: FitPlan, n_ctx: int, **changes: Any) -> FitPlan:
    settings = replace(plan.settings, n_ctx=n_ctx, **changes)
    return plan_model(plan.model, settings, [fit.device for fit in plan.devices], settings.n_gpu_layers)


def _gave_up(plan: FitPlan, wishes: Wishes) -> Iterator[str]:
    s = plan.settings
    trained = most_context(plan.model, wishes)
    yield from plan.notes()
    if len(plan.devices) > 1 and s.n_gpu_layers < plan.n_layers and wishes.n_gpu_layers is None:
        yield f"{plan.n_layers - s.n_gpu_layers} of {plan.n_layers} layers run on the CPU"
    if plan.model.has_mtp and not s.mtp and wishes.mtp is None:
        yield "no MTP drafting"
    if s.type_k is not GgmlType.F16 and wishes.kv_type is None:
        yield f"KV cache {s.type_k.name.lower()} instead of f16"
    if s.n_ctx < trained and not wishes.n_ctx:
        yield f"context {s.n_ctx} of the {trained} it was trained for"
    if s.n_ubatch < USUAL_UBATCH and wishes.n_ubatch is None:
        yield f"prompts are read {s.n_ubatch} tokens at a time, somewhat slower"


def _next_steps(
    candidates: Sequence[Candidate], rank: int, plan: FitPlan, devices: Sequence[Device], wishes: Wishes
) -> Iterator[str]:
    """Lines on what the next better file type and the next better run would need or cost."""
    s = plan.settings
    if rank + 1 < len(candidates):
        better = candidates[rank + 1]
        more = format_size(better.model.file_bytes - plan.model.file_bytes)
        alone = solve([better], devices, wishes).plan
        yield f"{better.name} instead of {candidates[rank].name}: {more} more; {_difference(plan, alone)}"
    trained = most_context(plan.model, wishes)
    if len(plan.devices) > 1 and s.n_gpu_layers < plan.n_layers:
        everything = plan_model(plan.model, s, devices, -1)
        yield f"all layers on the GPU: {format_size(_missing_bytes(everything))} more memory there"
        if rank == 0:  # no candidate is smaller
            wholes = (name for name, smaller in smaller_types(plan.model) if plan_model(smaller, s, devices, -1).fits)
            yield from (f"the file as {name}: all layers on the GPU" for name in itertools.islice(wholes, 1))
    elif s.n_ctx < trained:
        missing = _missing_bytes(_at(plan, trained))
        yield f"context {trained}: " + (
            f"{format_size(missing)} more memory" if missing else f"--ctx {trained} fits too"
        )
    if plan.model.has_mtp and not s.mtp and wishes.mtp is None:
        drafting = _at(plan, s.n_ctx, mtp=True)
        yield f"MTP drafting: {format_size(_missing_bytes(drafting))} more memory"


def _difference(plan: FitPlan, other: FitPlan) -> str:
    """The changes from `plan` to `other`, in words."""
    if not other.fits:
        return "does not fit"
    before, after = plan.settings, other.settings
    changes = []
    if len(plan.devices) > 1 and after.n_gpu_layers < before.n_gpu_layers:
        changes.append(f"only {after.n_gpu_layers} of {other.n_layers} layers on the GPU")
    if plan.runs_mtp and not other.runs_mtp:
        changes.append("no MTP drafting")
    if after.type_k is not before.type_k:
        changes.append(f"KV cache {after.type_k.name.lower()}")
    if after.n_ctx != before.n_ctx:
        changes.append(f"context {'falls' if after.n_ctx < before.n_ctx else 'grows'} to {after.n_ctx}")
    return ", ".join(changes) or "nothing else changes"


def candidate_of(model: ModelSizes, file_type: str) -> Candidate:
    """A candidate named by its file type, or by its file if the type is unknown."""
    return Candidate(file_type or Path(model.label).name, model)
