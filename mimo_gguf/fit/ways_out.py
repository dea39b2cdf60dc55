"""Ways out of a plan that does not fit: single changes, then several at once, each checked by a new plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from mimo_gguf.core.ggml_types import GgmlType, block_size
from mimo_gguf.core.kv_cache import can_hold_heads
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.fit.plan import FitPlan, WayOut
from mimo_gguf.fit.weigh import changed, largest_context

MOST: Final = 4
SMALLEST_CONTEXT: Final = 1024  # less is not enough for a conversation


@lru_cache(maxsize=16)
def find_ways_out(plan: FitPlan) -> tuple[WayOut, ...]:
    """Up to four changes that make `plan` fit, the least costly first; none if it fits already.

    They change context, KV cache, MTP, layers or file type, then several of these at once.
    """
    if plan.fits:
        return ()
    ways: list[WayOut] = []
    tightest = plan.tightest.device.name
    for attempt in _attempts(plan):
        found = attempt.applied_to(plan)
        if found is not None and found.fits:
            options = attempt.options(found)
            if not any(set(known.options) < set(options) for known in ways if known.options):
                ways.append(WayOut(attempt.text(options), options, found.settings, found.needed_bytes.get(tightest, 0)))
        if len(ways) == MOST:
            break
    return tuple(ways)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Changes to make together.

    Attributes:
        smaller: use another file, given as (file type, sizes).
        q8_cache: keep the KV cache in Q8_0.
        no_mtp: do not draft.
        free_layers: put as many layers on the GPUs as fit, not the number that the user chose.
        less_context: use the largest context that fits with the other changes.
    """

    smaller: tuple[str, ModelSizes] | None = None
    q8_cache: bool = False
    no_mtp: bool = False
    free_layers: bool = False
    less_context: bool = False

    def is_a_change(self, plan: FitPlan) -> bool:
        """Whether each of the changes is possible and changes `plan`."""
        pinned = plan.pinned_layers and len(plan.devices) > 1
        return (
            (not self.q8_cache or _can_use_q8_cache(plan))
            and (not self.no_mtp or plan.runs_mtp)
            and (not self.free_layers or pinned)
        )

    def applied_to(self, plan: FitPlan) -> FitPlan | None:
        """The changed plan, whether it fits or not; None if the context would be too small."""
        changes: dict[str, Any] = {"type_k": GgmlType.Q8_0, "type_v": GgmlType.Q8_0} if self.q8_cache else {}
        if self.no_mtp:
            changes["mtp"] = False
        free = replace(plan, pinned_layers=plan.pinned_layers and not self.free_layers)
        found = changed(free, model=self.smaller[1] if self.smaller else None, **changes)
        if not self.less_context:
            return found
        n_ctx = largest_context(found, plan.settings.n_ctx - 1)
        return changed(found, n_ctx=n_ctx) if n_ctx >= SMALLEST_CONTEXT else None

    def options(self, found: FitPlan) -> tuple[str, ...]:
        """The command line options that make the changes; there is none for another file."""
        options = ["--kv-type", "q8_0"] if self.q8_cache else []
        options += ["--no-mtp"] if self.no_mtp else []
        options += ["--gpu-layers", str(found.settings.n_gpu_layers)] if self.free_layers else []
        options += ["--ctx", str(found.settings.n_ctx)] if self.less_context else []
        return tuple(options)

    def text(self, options: tuple[str, ...]) -> str:
        words = " ".join(options)
        if self.smaller is None:
            return words
        return f"the file as {self.smaller[0]}" + (f" with {words}" if words else "")


# In the order they are offered: single changes, smaller files, several changes, the smallest file with less context.
_SINGLE: Final = (
    _Attempt(less_context=True),
    _Attempt(q8_cache=True),
    _Attempt(no_mtp=True),
    _Attempt(free_layers=True),
)
_SEVERAL: Final = (
    _Attempt(q8_cache=True, less_context=True),
    _Attempt(no_mtp=True, less_context=True),
    _Attempt(q8_cache=True, free_layers=True),
)


def _attempts(plan: FitPlan) -> Iterator[_Attempt]:
    files = smaller_types(plan.model) if plan.smaller is None else plan.smaller
    yield from (attempt for attempt in _SINGLE if attempt.is_a_change(plan))
    yield from (_Attempt(smaller=file) for file in files)
    yield from (attempt for attempt in _SEVERAL if attempt.is_a_change(plan))
    if files and not changed(plan, model=files[-1][1]).fits:
        yield _Attempt(smaller=files[-1], less_context=True)


def _can_use_q8_cache(plan: FitPlan) -> bool:
    storable = can_hold_heads(GgmlType.Q8_0, plan.model.geometry)
    return storable and plan.settings.flash_attn and plan.settings.type_k is not GgmlType.Q8_0


def smaller_types(model: ModelSizes) -> tuple[tuple[str, ModelSizes], ...]:
    """(file type, sizes) of the usual types that are smaller than this file, largest first.

    The sizes are upper bounds: a real file has some tensors of fewer bits. `mimo-gguf quantize --dry-run` gives exact
    sizes.
    """
    found = []
    for name, matrices, careful in (
        ("Q8_0", GgmlType.Q8_0, GgmlType.Q8_0),
        ("Q6_K", GgmlType.Q6_K, GgmlType.Q6_K),
        ("Q4_K_M", GgmlType.Q4_K, GgmlType.Q6_K),
    ):
        smaller = retyped(model, name, matrices, careful)
        if smaller.file_bytes < 0.97 * model.file_bytes:
            found.append((name, smaller))
    return tuple(found)


def retyped(model: ModelSizes, name: str, matrices: GgmlType, careful: GgmlType) -> ModelSizes:
    """`model` with its matrices in other types: `careful` for the output layer, attn_v and ffn_down.

    Rows that are not a whole number of blocks are kept in Q8_0, and in F16 if that does not divide them either.
    """

    def of(tensor_name: str, shape: tuple[int, ...], before: GgmlType) -> GgmlType:
        if len(shape) == 1:
            return before
        is_careful = tensor_name.startswith("output.") or ".attn_v." in tensor_name or ".ffn_down." in tensor_name
        after = careful if is_careful else matrices
        return next(kind for kind in (after, GgmlType.Q8_0, GgmlType.F16) if shape[-1] % block_size(kind) == 0)

    tensors = tuple(replace(info, ggml_type=of(info.name, info.shape, info.ggml_type)) for info in model.tensors)
    return replace(model, label=f"{model.label} as {name}", tensors=tensors)
