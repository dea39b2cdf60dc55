"""MiMo-7B from Hugging Face safetensors to GGUF (MTP layer kept), quantized, and run with MTP drafting."""

from __future__ import annotations

from mimo_gguf.core.version import __version__

TYPE_CHECKING = False  # as typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from mimo_gguf.runtime.llm import LLM, SamplingParams
    from mimo_gguf.runtime.model import Answer, AnswerStream, Model

__all__ = ["LLM", "Answer", "AnswerStream", "Model", "SamplingParams", "__version__"]

if not TYPE_CHECKING:  # a checker shall find the names above, and miss all others

    def __getattr__(name: str) -> Any:
        """The runtime's classes, imported when first asked for: they bring llama.cpp with them."""
        if name in ("Answer", "AnswerStream", "Model"):
            from mimo_gguf.runtime import model

            return getattr(model, name)
        if name in ("LLM", "SamplingParams"):
            from mimo_gguf.runtime import llm

            return getattr(llm, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
