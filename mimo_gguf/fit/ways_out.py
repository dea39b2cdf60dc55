"""Ways out of a plan that does not fit: single changes, then several at once, each checked with the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from mimo_gguf.core.ggml_types import GgmlType, block_size
from mimo_gguf.core.model_sizes import ModelSizes
from mimo_gguf.fit.plan import FitPlan, WayOut
from mimo_gguf.fit.weigh import changed, largest_context

MOST: Final = 4
SMALLEST_CONTEXT: Final = 1024  # a way out below this is none


@lru_cache(maxsize=16)
def find_ways_out(plan: FitPlan) -> tuple[WayOut, ...]:
    """Up to four changes that make `plan` fit, the least costly first; empty if it fits already.

    They are changes of context, KV cache, MTP, layers and file type, then of several at once.
    """
    if plan.fits:
        return ()
    ways: list[WayOut] = []
    tightest = plan.tightest.device.name
    for text, options, attempt in _attempts(plan):
        found = attempt()
        if found is not None and found.fits:
            way = WayOut(text(found), options(found), found.settings, found.needed_bytes[tightest])
            if not any(set(known.options) < set(way.options) for known in ways if known.options):
                ways.append(way)
        if len(ways) == MOST:
            break
    return tuple(ways)


Attempt = tuple[Callable[[FitPlan], str], Callable[[FitPlan], tuple[str, ...]], Callable[[], FitPlan | None]]


def _attempts(plan: FitPlan) -> Iterator[Attempt]:
    def context(found: FitPlan) -> tuple[str, ...]:
        return ("--ctx", str(found.settings.n_ctx))

    def smaller_context(**changes: Any) -> FitPlan | None:
        n_ctx = largest_context(changed(plan, **changes), plan.settings.n_ctx - 1)
        return changed(plan, n_ctx=n_ctx, **changes) if n_ctx >= SMALLEST_CONTEXT else None

    q8: dict[str, Any] = {"type_k": GgmlType.Q8_0, "type_v": GgmlType.Q8_0}
    heads = (plan.model.geometry.key_length, plan.model.geometry.value_length)
    storable = not any(length % block_size(GgmlType.Q8_0) for length in heads)
    can_q8 = plan.settings.type_k is not GgmlType.Q8_0 and plan.settings.flash_attn and storable
    yield (lambda c: f"--ctx {c.settings.n_ctx}"), context, smaller_context
    if can_q8:
        yield (lambda _: "--kv-type q8_0"), (lambda _: ("--kv-type", "q8_0")), lambda: changed(plan, **q8)
    if plan.runs_mtp:
        yield (lambda _: "--no-mtp"), (lambda _: ("--no-mtp",)), lambda: changed(plan, mtp=False)
    free = replace(plan, pinned_layers=False)
    if plan.pinned_layers and len(plan.devices) > 1:
        yield (
            (lambda c: f"--gpu-layers {c.settings.n_gpu_layers}"),
            (lambda c: ("--gpu-layers", str(c.settings.n_gpu_layers))),
            lambda: changed(free),
        )
    others = smaller_types(plan.model) if plan.smaller is None else plan.smaller
    for name, smaller in others:
        yield (
            (lambda _, name=name: f"the file as {name}"),  # type: ignore[misc]
            (lambda _: ()),
            lambda smaller=smaller: changed(plan, model=smaller),  # type: ignore[misc]
        )
    if can_q8:
        yield (
            (lambda c: f"--kv-type q8_0 --ctx {c.settings.n_ctx}"),
            (lambda c: ("--kv-type", "q8_0", *context(c))),
            lambda: smaller_context(**q8),
        )
    if plan.runs_mtp:
        yield (
            (lambda c: f"--no-mtp --ctx {c.settings.n_ctx}"),
            (lambda c: ("--no-mtp", *context(c))),
            lambda: smaller_context(mtp=False),
        )
    if plan.pinned_layers and len(plan.devices) > 1 and can_q8:
        yield (
            (lambda c: f"--kv-type q8_0 --gpu-layers {c.settings.n_gpu_layers}"),
            (lambda c: ("--kv-type", "q8_0", "--gpu-layers", str(c.settings.n_gpu_layers))),
            lambda: changed(free, **q8),
        )
    for name, smaller in others[-1:]:
        if changed(plan, model=smaller).fits:
            continue
        yield (
            (lambda c, name=name: f"the file as {name} with --ctx {c.settings.n_ctx}"),  # type: ignore[misc]
            context,
            lambda smaller=smaller: _smallest(plan, smaller),  # type: ignore[misc]
        )


def _smallest(plan: FitPlan, model: ModelSizes) -> FitPlan | None:
    other = replace(plan, model=model)
    n_ctx = largest_context(other, plan.settings.n_ctx - 1)
    return changed(other, n_ctx=n_ctx) if n_ctx >= SMALLEST_CONTEXT else None


def smaller_types(model: ModelSizes) -> tuple[tuple[str, ModelSizes], ...]:
    """(file type, sizes) of the usual types that are smaller than this file, largest first. An upper bound.

    A file of that type has at least some tensors of fewer bits; `mimo-gguf quantize --dry-run` gives exact sizes.
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
    """`model` with its matrices in other types: `careful` for the output layer, attn_v and ffn_down."""

    def of(tensor_name: str, shape: tuple[int, ...], before: GgmlType) -> GgmlType:
        if len(shape) == 1:
            return before
        is_careful = tensor_name.startswith("output.") or ".attn_v." in tensor_name or ".ffn_down." in tensor_name
        after = careful if is_careful else matrices
        return after if shape[-1] % block_size(after) == 0 else GgmlType.Q8_0

    tensors = tuple(replace(info, ggml_type=of(info.name, info.shape, info.ggml_type)) for info in model.tensors)
    return replace(model, label=f"{model.label} as {name}", tensors=tensors)
