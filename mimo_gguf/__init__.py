"""MiMo-7B from Hugging Face safetensors to GGUF (MTP layer kept), quantized, and run with MTP drafting."""

from __future__ import annotations

from mimo_gguf.core.version import __version__

TYPE_CHECKING = False  # as typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from mimo_gguf.fit.weigh import plan_fit
    from mimo_gguf.runtime.llm import LLM
    from mimo_gguf.runtime.model import Answer, AnswerStream, Model
    from mimo_gguf.runtime.params import SamplingParams
    from mimo_gguf.verbs import convert, inspect, plan_convert, plan_quantize, quantize, verify

__all__ = [
    "LLM",
    "Answer",
    "AnswerStream",
    "Model",
    "SamplingParams",
    "__version__",
    "convert",
    "inspect",
    "plan_convert",
    "plan_fit",
    "plan_quantize",
    "quantize",
    "verify",
]

# public name -> the module it is imported from when it is first asked for: some bring llama.cpp with them
_HOMES = {
    "Answer": "runtime.model",
    "AnswerStream": "runtime.model",
    "Model": "runtime.model",
    "LLM": "runtime.llm",
    "SamplingParams": "runtime.params",
    "plan_fit": "fit.weigh",
    "convert": "verbs",
    "inspect": "verbs",
    "plan_convert": "verbs",
    "plan_quantize": "verbs",
    "quantize": "verbs",
    "verify": "verbs",
}

if not TYPE_CHECKING:  # a checker shall find the names above, and miss all others

    def __getattr__(name: str) -> Any:
        """The public names, each imported when it is first asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
