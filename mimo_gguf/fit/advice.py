"""Warnings before a run that is possible, but perhaps not what the user meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mimo_gguf.core.ggml_types import GgmlType
from mimo_gguf.fit.plan import FitPlan

# The warning for a 4-bit cache.
FOUR_BIT_KV: Final = (
    "a 4-bit KV cache costs reasoning: GPQA-Diamond of Qwen3-8B fell from 57.1 to 53.5 %, to 55.6 % with the rotation "
    "that llama.cpp applies too (https://github.com/sgl-project/sglang/pull/36172)"
)
_FOUR_BIT_TYPES: Final = (GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.IQ4_NL)


def advice(plan: FitPlan, n_gpu_layers: int | None = None) -> tuple[str, ...]:
    """Warnings about `plan`, one line each.

    Args:
        n_gpu_layers: layers on the GPU that the user asked for; None if that was left open.
    """
    return tuple(_advice(plan, n_gpu_layers))


def _advice(plan: FitPlan, n_gpu_layers: int | None) -> Iterator[str]:
    s, trained = plan.settings, plan.model.geometry.context_length
    if n_gpu_layers and len(plan.devices) == 1 and not plan.left_out:
        yield "--gpu-layers does nothing here: the installed llama.cpp sees no GPU; mimo-gguf doctor says why"
    n_ctx = s.n_ctx // s.n_seq_max
    if n_ctx > trained:
        yield f"a context of {n_ctx} tokens is more than the {trained} the model was trained for: past them it rambles"
    if s.type_k in _FOUR_BIT_TYPES or s.type_v in _FOUR_BIT_TYPES:
        yield FOUR_BIT_KV
