"""The refusal of a plan that does not fit, with its numbers and ways out, and any plan as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mimo_gguf.core.errors import DoesNotFit
from mimo_gguf.fit.plan import FitPlan
from mimo_gguf.fit.ways_out import find_ways_out


def check_fit(plan: FitPlan) -> None:
    """Raises DoesNotFit, with the numbers and ways out, if the plan does not fit."""
    if plan.fits:
        return
    worst = plan.tightest
    ways = "; ".join(way.text for way in find_ways_out(plan)[:3]) or "nothing this tool can change is enough"
    raise DoesNotFit(
        f"{Path(plan.model.label).name} with a context of {plan.settings.n_ctx} {worst.shortage()}",
        hint=f"what fits: {ways}",
    )


def plan_json(plan: FitPlan) -> dict[str, Any]:
    """The plan as a JSON document: settings, the need of each device part by part, and ways out if it does not fit."""
    s = plan.settings
    return {
        "model": plan.model.label,
        "fits": plan.fits,
        "settings": {
            "n_ctx": s.n_ctx, "n_batch": s.n_batch, "n_ubatch": s.n_ubatch, "n_seq_max": s.n_seq_max,
            "n_outputs_max": s.n_outputs_max, "type_k": s.type_k.name.lower(), "type_v": s.type_v.name.lower(),
            "flash_attn": s.flash_attn, "mtp": plan.runs_mtp, "n_gpu_layers": s.n_gpu_layers,
            "n_layers": plan.n_layers, "tensor_split": list(s.tensor_split),
        },
        "devices": [
            {
                "name": fit.device.name, "description": fit.device.description, "kind": fit.device.kind,
                "total_bytes": fit.device.total_bytes, "free_bytes": fit.free_bytes,
                "needed_bytes": fit.needed_bytes, "fits": fit.fits, "tree": fit.memory.as_json(fit.device.name),
            }
            for fit in plan.devices
        ],
        "left_out": [{"name": gpu.name, "free_bytes": gpu.free_bytes} for gpu in plan.left_out],
        "ways_out": [
            {"text": way.text, "options": list(way.options), "needed_bytes": way.needed_bytes}
            for way in find_ways_out(plan)
        ],
    }  # fmt: skip
