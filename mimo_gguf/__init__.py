"""MiMo-7B from Hugging Face safetensors to GGUF (MTP layer kept), quantized, and run with MTP drafting."""

from __future__ import annotations

from mimo_gguf.core.version import __version__

TYPE_CHECKING = False  # as typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from mimo_gguf.advice.run import advise
    from mimo_gguf.calibrated import calibrate, plan_calibrate
    from mimo_gguf.chat.answer import Answer, AnswerOptions
    from mimo_gguf.chat.reasoning import Kind, Piece
    from mimo_gguf.core.errors import (
        BackendError,
        CheckpointError,
        DoesNotFit,
        GgufError,
        HubError,
        MimoGgufError,
        OutputError,
        RecipeError,
        UsageError,
        WeightsError,
    )
    from mimo_gguf.engine.sampling import SamplingOptions
    from mimo_gguf.engine.session import SessionOptions
    from mimo_gguf.engine.slot import WindowFull
    from mimo_gguf.evaluation.run import evaluate
    from mimo_gguf.fit.weigh import plan_fit
    from mimo_gguf.quality.checking import check_quality
    from mimo_gguf.quality.measure import measure_quality
    from mimo_gguf.quality.original import compare
    from mimo_gguf.relabelled import plan_relabel, relabel
    from mimo_gguf.runtime.async_llm import AsyncLLM
    from mimo_gguf.runtime.llm import LLM
    from mimo_gguf.runtime.model import Model
    from mimo_gguf.runtime.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
    from mimo_gguf.runtime.params import (
        GuidedDecodingParams,
        RequestOutputKind,
        SamplingParams,
        StructuredOutputsParams,
    )
    from mimo_gguf.runtime.prompts import TextPrompt, TokensPrompt
    from mimo_gguf.runtime.stream import AnswerStream
    from mimo_gguf.server.offline import batch, plan_batch
    from mimo_gguf.server.start import serve
    from mimo_gguf.verbs import convert, imatrix, inspect, plan_convert, plan_quantize, quantize, verify

__all__ = [
    "LLM",
    "Answer",
    "AnswerOptions",
    "AnswerStream",
    "AsyncLLM",
    "BackendError",
    "CheckpointError",
    "CompletionOutput",
    "DoesNotFit",
    "GgufError",
    "GuidedDecodingParams",
    "HubError",
    "Kind",
    "Logprob",
    "MimoGgufError",
    "Model",
    "OutputError",
    "Piece",
    "RecipeError",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingOptions",
    "SamplingParams",
    "SessionOptions",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "UsageError",
    "WeightsError",
    "WindowFull",
    "__version__",
    "advise",
    "batch",
    "calibrate",
    "check_quality",
    "compare",
    "convert",
    "evaluate",
    "imatrix",
    "inspect",
    "measure_quality",
    "plan_batch",
    "plan_calibrate",
    "plan_convert",
    "plan_fit",
    "plan_quantize",
    "plan_relabel",
    "quantize",
    "relabel",
    "serve",
    "verify",
]

# public name -> the module it is imported from when it is first asked for: some bring llama.cpp with them
_HOMES = {
    "BackendError": "core.errors",
    "CheckpointError": "core.errors",
    "DoesNotFit": "core.errors",
    "GgufError": "core.errors",
    "HubError": "core.errors",
    "MimoGgufError": "core.errors",
    "OutputError": "core.errors",
    "RecipeError": "core.errors",
    "UsageError": "core.errors",
    "WeightsError": "core.errors",
    "Answer": "chat.answer",
    "AnswerOptions": "chat.answer",
    "Kind": "chat.reasoning",
    "Piece": "chat.reasoning",
    "SamplingOptions": "engine.sampling",
    "SessionOptions": "engine.session",
    "WindowFull": "engine.slot",
    "evaluate": "evaluation.run",
    "plan_fit": "fit.weigh",
    "check_quality": "quality.checking",
    "measure_quality": "quality.measure",
    "AsyncLLM": "runtime.async_llm",
    "LLM": "runtime.llm",
    "Model": "runtime.model",
    "CompletionOutput": "runtime.outputs",
    "Logprob": "runtime.outputs",
    "RequestMetrics": "runtime.outputs",
    "RequestOutput": "runtime.outputs",
    "GuidedDecodingParams": "runtime.params",
    "RequestOutputKind": "runtime.params",
    "SamplingParams": "runtime.params",
    "StructuredOutputsParams": "runtime.params",
    "TextPrompt": "runtime.prompts",
    "TokensPrompt": "runtime.prompts",
    "AnswerStream": "runtime.stream",
    "advise": "advice.run",
    "batch": "server.offline",
    "plan_batch": "server.offline",
    "serve": "server.start",
    "calibrate": "calibrated",
    "plan_calibrate": "calibrated",
    "plan_relabel": "relabelled",
    "relabel": "relabelled",
    "compare": "quality.original",
    "convert": "verbs",
    "imatrix": "verbs",
    "inspect": "verbs",
    "plan_convert": "verbs",
    "plan_quantize": "verbs",
    "quantize": "verbs",
    "verify": "verbs",
}

if not TYPE_CHECKING:  # a checker shall find the names above, and miss all others
    import sys

    class _Package(type(sys)):
        """The package: loading its folder `batch/` does not put that in the place of the verb."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in _HOMES or not isinstance(value, type(sys)):
                super().__setattr__(name, value)

    sys.modules[__name__].__class__ = _Package

    def __getattr__(name: str) -> Any:
        """The public names, each imported when it is first asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
