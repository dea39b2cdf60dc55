"""Checkpoint to GGUF in one call, as the command line does it."""

from __future__ import annotations

from pathlib import Path

from mimo_gguf.conversion.checkpoint_source import ConversionOptions
from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.quantization.plan import OutputRequest, QuantizeOptions, plan_quantization
from mimo_gguf.quantization.profiles import load_profile
from mimo_gguf.quantization.run import run_quantization


def convert(folder: Path, out: Path, ftype: str = "BF16", options: ConversionOptions | None = None) -> Path:
    with open_model(str(folder), options) as source:
        plan = plan_quantization(source, [OutputRequest(load_profile(ftype), out)], QuantizeOptions(force=True))
        run_quantization(plan)
    return out
